#!/usr/bin/env python3
"""Writes tests/text/template_cases.jsonl: template snippets with what the reference makes of them. Development only: the
result is checked in and no test runs this.

usage: pip install jinja2==3.1.6 && tests/text/make_template_cases.py > tests/text/template_cases.jsonl

The reference is jinja2 as transformers sets it up for chat templates. A line is {"t": template, "c": context, "r": text}
or {"t", "c", "e": the exception}: then ours must fail as well, in its own words.
"""
import copy
import datetime
import json
import sys

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception
env.globals["strftime_now"] = NOW.strftime

CONTEXT = {
    "i": 7, "n": -3, "zero": 0, "f": 2.5, "one": 1.0, "t": True, "nope": False, "none_v": None, "s": "Hello, World",
    "u": "Zürich 日本 🙂 ß", "e": "", "sp": "  two  words \n", "l": [3, 1, 2], "el": [], "ls": ["b", "A", "c"],
    "mix": [1, 2.5, "x", None, True, [1, {"k": "v"}]], "d": {"b": 1, "a": "two", "items": [1], "get": 5},
    "dd": {"x": {"y": [10, 20, {"z": "deep"}]}}, "ed": {}, "users": [
        {"name": "Ann", "age": 30, "city": "Bern", "active": True}, {"name": "bob", "age": 25, "city": "Zug"},
        {"name": "Cid", "age": 35, "city": "bern", "active": False}],
    "html": "<a href=\"x\">Tom & 'Jerry'</a>", "lines": "one\ntwo\n\n  three\r\nfour", "nums": [1, 2, 3, 4, 5, 6, 7],
    "big": 12345678901234567890, "exp": 1e5, "tiny": 1e-7, "messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "{}"}, {"role": "user", "content": "Bye"}],
}

EXPRESSIONS = r'''
1
-1
+1
1 + 2 * 3
(1 + 2) * 3
7 / 2
6 / 2
7 // 2
-7 // 2
7 // -2
7.5 // 2
-7.5 // 2
7 % 3
-7 % 3
7 % -3
7.5 % 2
-7.5 % 2
7.5 % -2
2 ** 10
2 ** -1
2 ** 0.5
(-2) ** 3
2 ** 3 ** 2
-2 ** 2
0 ** 0
1 / 0
1 // 0
1 % 0
1.0 / 0
1.5 % 0
0.1 + 0.2
1e16
1e15
123456789012345680.0
1e22
1e-4
1e-5
1.5e-10
1e100
0.0
-0.0
1.0
100.0
1_000
1_000.5
0x1f
0b101
0o17
1e3
1E3
1.5E+3
3.14159265358979
1/3
2/3
1e300*1e300
-(1e300*1e300)
9007199254740993
9223372036854775807
-9223372036854775808
true
false
none
True
False
None
'a'
"a"
'a' 'b'
'it\'s'
"q\"q"
'\n\t\\'
'\x41\u00e9\U0001F642\101'
'\q'
'a\
b'
[]
[1, 2, 3,]
[1, [2, [3]]]
()
(1,)
(1, 2)
1, 2
{}
{'a': 1}
{'a': 1, 'b': [1, 2], 3: 'c', none: 1, true: 2}
{1: 'a', 1.0: 'b', true: 'c'}
{'a': 1,}
["a'b", 'a"b', 'a\'b"c', "\n\t\\", "é", "\u200b", "\x07", "\xa0", "🙂", "\u0301"]
i
f
one
t
none_v
undefined_thing
undefined_thing.x
undefined_thing['x']
undefined_thing()
undefined_thing + 1
1 + undefined_thing
'a' + undefined_thing
'a' ~ undefined_thing ~ 'b'
-undefined_thing
undefined_thing == undefined_thing
undefined_thing == none
undefined_thing != 1
undefined_thing < 1
undefined_thing in [1]
1 in undefined_thing
not undefined_thing
undefined_thing or 'x'
undefined_thing and 'x'
undefined_thing is defined
undefined_thing is undefined
undefined_thing|length
undefined_thing|list
undefined_thing|upper
undefined_thing|default('d')
undefined_thing|d
undefined_thing|int
undefined_thing|join(',')
undefined_thing|first
undefined_thing|last
undefined_thing|tojson
undefined_thing|string
undefined_thing|items|list
undefined_thing|sort
undefined_thing|abs
[undefined_thing]
undefined_thing is iterable
undefined_thing is sequence
undefined_thing is mapping
undefined_thing is string
undefined_thing is none
undefined_thing is callable
undefined_thing * 2
undefined_thing ** 2
undefined_thing % 2
'%s' % undefined_thing
undefined_thing[1:]
s[undefined_thing:]
d.nothing
d.nothing.more
d['nothing']
d['nothing'] is defined
l[99]
l[99] is defined
l[99].x
l['x']
none_v.x
none_v['x']
none_v.x.y
i.x
i[0]
s.x
s.nope()
d.a
d.b
d['a']
d.items
d['items']
d.get
d['get']
d.items()
d.get('a')
d.get('q')
d.get('q', 'dflt')
d.get('q', none)
d.keys()
d.values()
d.keys()|list
d.values()|list
d.items()|list
d|items|list
d|list
d|length
d|first
d|last
d|join(',')
d.items()|length
d.items()[0]
d.keys()|first
'a' in d
'zz' in d
'a' in d.keys()
1 in d.values()
('b', 1) in d.items()
[1] in d
d == {'b': 1, 'a': 'two', 'items': [1], 'get': 5}
d is mapping
d.copy()
d.update({'x': 1})
d.pop('a')
d.clear()
d.setdefault
l.append(4)
l.append is defined
l.pop()
l.copy()
l.count(1)
l.index(2)
l.index(9)
l.sort()
(1,2,1).count(1)
dd.x.y[2].z
dd.x.y.2.z
dd['x']['y'][-1]['z']
dd.x.y[0]
dd.x.y.0
dd.x.y.1
l.0
l.0.1
l[0]
l[-1]
l[-4]
l[1:]
l[:1]
l[:-1]
l[::-1]
l[::2]
l[1:2]
l[5:]
l[:]
l[-2:]
l[::0]
nums[1:6:2]
nums[6:1:-2]
nums[-1:-4:-1]
nums[:3:-1]
nums[3::-1]
nums[10:0:-3]
nums[-100:100]
nums[none:2]
nums['a':]
nums[1.5:]
nums[t:]
nums[9223372036854775807:]
nums[::9223372036854775807]
nums[::-9223372036854775807]
(1,2,3)[1:]
(1,2,3)[::-1]
s[0]
s[-1]
s[1:4]
s[::-1]
s[::2]
s[-5:-1]
s[100]
s[100:]
u[7]
u[7:9]
u[::-1]
u[-1]
u[1]
u[-4:]
u[::3]
u|length
u|reverse
e[0]
e[:1]
e|length
range(5)
range(5)|list
range(2, 5)|list
range(5, 0, -2)|list
range(0)|list
range(3)[1]
range(3)[-1]
range(10)[2:5]
range(10)[::-1]|list
range(3)|length
range(3) == range(3)
range(0, 6, 2)
3 in range(5)
'a' in range(5)
range(100001)
range(1, 2, 0)
range('a')
range()
range(1.5)
range(true)|list
1 == 1.0
1 == true
0 == false
'1' == 1
none == none
[1] == [1.0]
[1] == (1,)
(1,) == (1,)
{} == {}
'a' < 'b'
'a' < 'B'
'é' > 'z'
[1, 2] < [1, 3]
[1] < [1, 0]
(1, 'a') < (1, 'b')
1 < 'a'
none < 1
[1] < ['a']
{} < {}
1 < 2 < 3
1 < 2 > 1
3 > 2 > 2
1 == 1 == 1
1 < 2 == true
1 in [1] == true
1 != 2 != 1
not 1 == 2
not true and false
not (true and false)
true or false and false
(true or false) and false
1 and 2
0 and 2
0 or 'x'
'' or none
none or '' or [] or 'last'
1 if t else 2
1 if nope else 2
1 if nope
(1 if nope) is defined
1 if nope else 2 if t else 3
'a' if e else 'b' if none_v else 'c'
(1 if nope).x
'a' in 'abc'
'' in 'abc'
'x' not in 'abc'
1 in 'abc'
none in [none]
1.0 in [1]
true in [1]
'a' in ['a', 'b']
1 not in [2]
not 1 in [1]
1 in 5
1 in none_v
'a' ~ 1 ~ none ~ true ~ 1.5 ~ [1]
1 ~ 2
'a' + 'b'
'a' * 3
3 * 'ab'
'a' * -1
'a' * 0
'a' * 1.5
[1] * 2
2 * [1, 2]
(1,) * 2
[1] + [2]
(1,) + (2,)
[1] + (2,)
'a' + 1
1 + 'a'
'a' - 'b'
[1] - [1]
{} + {}
none + 1
true + true
true * 3
-true
+true
-'a'
-none
+[]
not []
not 'a'
1 + 2 ~ 3
'a' ~ 1 + 2
2 ~ 3 * 4
10 - 2 - 3
2 * 3 % 4
100 / 10 / 2
1 - -1
1 - - 1
1--1
-i
--i
-i|abs
(-i)|abs
-5|abs
-5 is odd
2 + 3|string
(2 + 3)|string
'a'|upper + 'b'
s|upper|lower|title
s.upper().lower()
s.upper
s|length > 3
s|length is odd
i is odd
i is even
i is divisibleby 7
i is divisibleby(2)
i is divisibleby 0
f is odd
'a' is odd
i is number
f is number
t is number
s is number
i is integer
t is integer
one is integer
f is float
i is float
t is boolean
i is boolean
t is true
t is false
nope is false
1 is true
none_v is none
s is none
s is string
i is string
l is string
l is sequence
s is sequence
d is sequence
i is sequence
range(2) is sequence
(1,) is sequence
l is iterable
s is iterable
d is iterable
i is iterable
none_v is iterable
range(1) is iterable
(l|map('string')) is iterable
(l|map('string')) is sequence
d is mapping
l is mapping
s is lower
'abc' is lower
'ABC' is upper
'123' is lower
'' is upper
1 is upper
i is sameas 7
t is sameas true
l is sameas l
none_v is sameas none
1 is sameas true
i is eq 7
i is equalto 7
i == 7 is true
i is ne 7
i is lt 8
i is le 7
i is gt 7
i is ge 7
i is greaterthan 3
i is lessthan 3
i is in [7]
i is in l
i is not in l
'a' is in 'abc'
i is not none
i is not defined
s is not string
d is callable
range is callable
s.upper is callable
namespace is callable
'upper' is filter
'nofilter' is filter
'odd' is test
'notest' is test
s is escaped
(s|safe) is escaped
i is defined and i is odd
i is odd or nope
i is odd if t else 2
not i is odd
i is divisibleby(7) and t
i is nosuchtest
i|nosuchfilter
i|nosuchfilter if nope else 'ok'
i|nosuchfilter if t else 'ok'
'ok' if t else i|nosuchfilter
'ok' if t else i is nosuchtest
s|upper
s|lower
'hello world'|title
"it's a DOG-house (big) {x} [y] <z>"|title
'hELLO wORLD'|capitalize
'ßtraße ǆ'|capitalize
'ßtraße ǆ ŉ ﬁ'|upper
'ßtraße ǆ ﬁ'|title
'ΑΣ ΣΑΣ Σ'|lower
'İSTANBUL'|lower
'ÀÉÎ ŽŁ ЖД ΑΩ'|lower
'àéî žł жд αω ა'|upper
'hello wörld'.title()
"they're bill's".title()
'hELLO'.swapcase()
'Straße'.casefold()|length > 0
42|upper
none|upper
true|lower
[1]|upper
sp|trim
sp|trim|length
'xxaxx'|trim('x')
'xyaxy'|trim('yx')
'\u3000a\u00a0\u2003'|trim
'\x1ca\x1f'.strip()
'\u200ba'|trim|length
42|trim
none|trim
sp.strip()
sp.lstrip()
sp.rstrip()
'xxa'.lstrip('x')
'axx'.rstrip('x')
'axx'.strip('')
'axx'.strip(none)
'äxä'.strip('ä')
'abc'.strip('cba')
'prefix-x'.removeprefix('prefix')
'x-suffix'.removesuffix('suffix')
'abc'.removesuffix('')
s.split(',')
s.split(', ')
s.split()
sp.split()
'  '.split()
''.split()
''.split(',')
'a,b,c,d'.split(',', 2)
'a,b,c,d'.split(',', maxsplit=1)
'a,b,c,d'.split(sep=',')
'a b  c '.split(none, 1)
'  a b  c '.split(maxsplit=1)
'a,b,c,d'.rsplit(',', 1)
'  a b  c '.rsplit(none, 1)
' a b c '.rsplit()
'a b'.rsplit(maxsplit=0)
'a b '.split(maxsplit=0)
'a,b'.split('')
'a,b'.split(',', 'x')
'abc'.split('b', 0)
'a\u3000b\u2028c'.split()
'aXbXc'.partition('X')
'aXbXc'.rpartition('X')
'abc'.partition('X')
'abc'.rpartition('X')
'abc'.partition('')
lines.splitlines()
lines.splitlines(true)
'a\nb\n'.splitlines()
'a\r\nb\rc\x0bd\u2028e\x85f'.splitlines()
''.splitlines()
'\n'.splitlines()
s.startswith('Hell')
s.startswith('ello', 1)
s.startswith(('x', 'He'))
s.startswith(['x'])
s.startswith('')
s.startswith(1)
s.endswith('ld')
s.endswith(('x', 'd'))
s.endswith('World', 0, 5)
s.endswith('lo', 0, 5)
s.find('o')
s.find('zz')
s.find('o', 5)
s.find('')
u.find('日')
u.rfind('日')
s.rfind('o')
s.find('o', 5, 8)
s.index('W')
s.index('zz')
s.rindex('o')
s.count('l')
s.count('')
u.count('')
'aaaa'.count('aa')
s.replace('l', 'L')
s.replace('l', 'L', 1)
s.replace('', '-')
u[:3].replace('', '-')
s.replace('l', '')
s.replace('zz', 'y')
'abc'.replace('', '-', 2)
s.replace(1, 2)
s|replace('l', 'L')
s|replace('l', 'L', 2)
s|replace('o', 0)
123|replace(2, 'x')
s|replace('', '.', 3)
', '.join(['a', 'b'])
', '.join([1])
'-'.join('abc')
'-'.join(d)
''.join([])
s.center(20)
s.center(21, '*')
'ab'.center(5)
'abc'.center(6)
'ab'.center(5, 'é')
'ab'.center(5, 'xx')
'ab'.ljust(5) ~ '|'
'ab'.rjust(5, '.')
'-42'.zfill(6)
'+42'.zfill(6)
'42'.zfill(2)
'ab'|center(7) ~ '|'
'a\tb\tc'.expandtabs(4)
'a\tb'.expandtabs()
'abc1'.isalnum()
'abc'.isalpha()
'日本'.isalpha()
'a b'.isalpha()
''.isalpha()
'123'.isdigit()
'12.3'.isdigit()
'٣'.isdigit()
'123'.isnumeric()
'½'.isnumeric()
'123'.isdecimal()
' \t'.isspace()
''.isspace()
'ABC'.isupper()
'ABC1'.isupper()
'AbC'.isupper()
'abc!'.islower()
'Hello World'.istitle()
'Hello world'.istitle()
'abc'.isascii()
'é'.isascii()
''.isascii()
'abc\n'.isprintable()
'a_1'.isidentifier()
'1a'.isidentifier()
'{} {}'.format('a', 1)
'{1} {0}'.format('a', 1)
'{a} {b}'.format(a=1, b='x')
'{0.a} {0[b]}'.format(d)
'{x[y][0]}'.format(x=dd.x)
'{:>5}|{:<5}|{:^5}|'.format('a', 'b', 'c')
'{:*^7}'.format('mid')
'{:05d} {:+d} {: d} {:x} {:X} {:o} {:b}'.format(42, 42, 42, 255, 255, 8, 5)
'{:#x} {:#o} {:#b}'.format(255, 8, 5)
'{:,} {:_}'.format(1234567, 1234567)
'{:,.2f}'.format(1234567.891)
'{:.2f} {:.0f} {:e} {:g} {:%}'.format(3.14159, 2.5, 12345.678, 0.0001, 0.25)
'{:10.3f}|{:<10.3f}|{:+.1f}'.format(3.14159, 3.14159, 2.25)
'{:.3}'.format('abcdef')
'{:>{w}}'.format('a', w=4)
'{!r} {!s}'.format('a', 'b')
'{!a}'.format('é')
'{{}}'.format()
'{'.format()
'}'.format()
'{}'.format()
'{a}'.format()
'{} {0}'.format(1, 2)
'{:d}'.format('a')
'{:d}'.format(1.5)
'{:s}'.format(1)
'{:.1f}'.format(1)
'{:5}'.format(true) ~ '|'
'{:5}'.format(3) ~ '|'
'{}'.format(none)
'{}'.format([1, 'a'])
'{:g} {:g} {:g}'.format(1.0, 1e20, 123456789.0)
'{} {}'.format(1.0, 1e16)
'{:.3} {:.3}'.format(1.0, 1234.5)
'{:08.2f}'.format(-3.14159)
'{:08,d}'.format(1234)
'{:c}'.format(65)
'{0.__class__}'.format(1)
'%s %d' % ('a', 3)
'%s' % 'x'
'%s' % 5
'%s' % [1, 2]
'%s' % (1,)
'%s %s' % 'a'
'%d' % 'a'
'%d' % 3.9
'%5d|%-5d|%05d|%+d|% d' % (42, 42, 42, 42, 42)
'%.2f %5.1f %e %g %G' % (3.14159, 2.25, 12345.678, 0.00001, 1e20)
'%x %X %o %#x %#o' % (255, 255, 8, 255, 8)
'%r %s %a' % ('é', 'é', 'é')
'%c%c' % ('a', 66)
'%%' % ()
'%5s|%-5s|%.2s' % ('ab', 'ab', 'abc')
'%(a)s %(b)s' % {'a': 1, 'b': 2}
'%(q)s' % {'a': 1}
'%*d' % (5, 42)
'%.*f' % (2, 3.14159)
'%s' % ()
'%d%%' % 50
'%q' % 1
'%' % 1
'x' % 1
'x' % {}
'x' % ()
'%.3d|%+.3d|%6.3d' % (5, 5, 5)
'%05s' % 'ab'
'%x' % 1.5
'%s %s'|format('a', 'b')
'%(x)s'|format(x=1)
'%s'|format
'%.1f'|format(0.25)
'%.1f'|format(0.35)
'%.0f %.0f %.0f'|format(0.5, 1.5, 2.5)
l|length
s|length
i|length
l|count
l|first
l|last
el|first
el|last
el|first is defined
s|first
s|last
e|first
range(3)|last
l|sum
['a']|sum
l|sum(start=10)
users|sum(attribute='age')
[1, 2.5]|sum
[[1], [2]]|sum(start=[])
l|min
l|max
ls|min
ls|max
'{}'|max
'{}'|min
'a' < 'c'
'c' < 'a'
ls|max(case_sensitive=true)
el|min
users|max(attribute='age')
[1, 'a']|max
l|sort
ls|sort
ls|sort(case_sensitive=true)
ls|sort(reverse=true)
l|sort(true)
users|sort(attribute='age')|map(attribute='name')|list
users|sort(attribute='city,age')|map(attribute='name')|list
users|sort(attribute='city', reverse=true)|map(attribute='name')|list
[1, 'a']|sort
d|sort
s|sort|join
[3, 1.5, true]|sort
[[2], [1]]|sort
d|dictsort
d|dictsort(true)
d|dictsort(false, 'value')
{'b': 2, 'A': 1, 'c': 0}|dictsort
{'b': 2, 'A': 1, 'c': 0}|dictsort(true)
{'b': 2, 'A': 1, 'c': 0}|dictsort(by='value')
{'b': 2, 'A': 1, 'c': 0}|dictsort(reverse=true)
{'b': 2}|dictsort(by='x')
l|dictsort
l|reverse|list
l|reverse|first
s|reverse
d|reverse|list
range(3)|reverse|list
l|list
s[:3]|list
none|list
5|list
l|join
l|join(', ')
l|join(1)
mix|join('|')
users|join(', ', attribute='name')
s[:3]|join('-')
5|join
ls|unique|list
['a', 'A', 'b', 'a']|unique|list
['a', 'A', 'b', 'a']|unique(case_sensitive=true)|list
users|unique(attribute='city')|map(attribute='name')|list
[1, 1.0, true, 2]|unique|list
[[1]]|unique|list
l|map('string')|list
ls|map('upper')|list
ls|map('upper')|join(',')
l|map('nosuch')|list
users|map(attribute='name')|list
users|map(attribute='active')|list
users|map(attribute='active', default='?')|list
users|map(attribute='name', foo=1)|list
users|map|list
[[1, 2], [3, 4]]|map('first')|list
[[1, 2], [3, 4]]|map(attribute=1)|list
[[1, 2], [3, 4]]|map(attribute='1')|list
[[1, 2], [3, 4]]|map('join', '-')|list
[1.5, 2.7]|map('round')|list
[1.55, 2.75]|map('round', 1, 'floor')|list
[1.55, 2.75]|map('round', method='ceil')|list
['a']|map('default', 'x')|list
(l|map('string'))|length
(l|map('string'))[0]
(l|map('string')) is defined
none|map('upper')|list
nums|select('odd')|list
nums|select('divisibleby', 3)|list
nums|select('gt', 3)|list
nums|select('in', [2, 3])|list
nums|reject('odd')|list
[0, 1, '', 'a', none]|select|list
[0, 1, '', 'a', none]|reject|list
nums|select('nosuch')|list
users|selectattr('active')|map(attribute='name')|list
users|selectattr('active', 'defined')|map(attribute='name')|list
users|rejectattr('active')|map(attribute='name')|list
users|selectattr('age', 'gt', 28)|map(attribute='name')|list
users|selectattr('name', 'equalto', 'bob')|list|length
users|selectattr('name', '==', 'bob')|first
users|selectattr('city', 'in', ['Zug'])|map(attribute='name')|first
users|rejectattr('age', 'ge', 30)|map(attribute='name')|list
users|selectattr|list
users|selectattr('nope.deep')|list
messages|selectattr('role', 'equalto', 'user')|list|length
messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join(' ')
(messages|selectattr('role', 'equalto', 'nobody')) is true
'yes' if messages|selectattr('role', 'equalto', 'nobody') else 'no'
'yes' if messages|selectattr('role', 'equalto', 'nobody')|list else 'no'
messages|map(attribute='role')|unique|list
messages[::-1]|map(attribute='role')|list
messages[-1]['role']
messages[1:]|length
messages[0].content
messages[2].tool_calls[0].function.name
users|groupby('city')
users|groupby('city')|map(attribute='grouper')|list
users|groupby('city')|map('first')|list
users|groupby('city', case_sensitive=true)|map(attribute='grouper')|list
users|groupby('nope', default='x')|map(attribute='grouper')|list
(users|groupby('city'))[0].list|length
nums|batch(3)|list
nums|batch(3, 'x')|list
nums|slice(3)|list
nums|slice(3, 'x')|list
nums|slice(0)|list
nums|slice(10)|list
1.5|round
2.5|round
-2.5|round
0.125|round(2)
2.675|round(2)
1234.5678|round(-2)
1234|round(-2)
1250|round(-2)
1350|round(-2)
5|round
1.21|round(1, 'ceil')
1.29|round(1, 'floor')
-1.5|round(0, 'ceil')
1.5|round(method='weird')
'a'|round
1.5|round|int
'42'|int
'42.9'|int
'-42'|int
' 42 '|int
'abc'|int
'abc'|int(7)
''|int
'0x1f'|int(0, 16)
'1f'|int(base=16)
'0b11'|int(0, 2)
'0o17'|int(base=8)
'1_000'|int
'1__0'|int
'_1'|int
'z'|int(base=36)
'12'|int(base=0)
'0x12'|int(base=0)
42.9|int
-42.9|int
true|int
none|int
none|int(5)
[]|int
'1e3'|int
'inf'|int
'99999999999999999999'|int
'42'|float
'4.2e1'|float
'abc'|float
'abc'|float(1.5)
' 1.5 '|float
'1_0.5'|float
'.5'|float
'5.'|float
'1e400'|float
'nan'|float
'-inf'|float
true|float
none|float
5|float
-5|abs
-5.5|abs
'a'|abs
true|abs
i|string
f|string
none|string
l|string
s|string
s|default('x')
e|default('x')
e|default('x', true)
e|d('x', boolean=true)
none_v|default('x')
none_v|default('x', true)
d.q|default('x')
d.q.r|default('x')
0|default(5, true)
s|safe
html|e
html|escape
html|safe|e
html|forceescape
html|safe|forceescape
html|e|e
html|e ~ html
html|e + html
html + html|e
(html|safe) + '<b>'
'<b>' + (html|safe)
'<b>' ~ (html|safe)
('<b>'|safe) * 2
('<b>%s</b>'|safe) % '<i>'
('<b>%s</b>'|safe)|format('<i>')
('<b>{}</b>'|safe).format('<i>')
('<b>'|safe)|upper
('<b>'|safe)|length
('a'|safe) == 'a'
['<b>'|safe]
('<b>'|safe).replace('b', '<')
(','|safe).join(['<', '>'])
['<', '>'|safe]|join('&')
('<b>'|safe)|replace('<', '&')
('<b>'|safe)|tojson
('a b'|safe).split()
1|e
none|e
'a<b'|striptags
'<p>Hello <b>World</b></p> &amp; <!-- c --> x &lt;'|striptags
s|wordcount
'a-b c_d é1'|wordcount
''|wordcount
'foo bar baz qux'|truncate(9)
'foo bar baz qux'|truncate(9, true)
'foo bar baz qux'|truncate(11)
'foo bar baz qux'|truncate(11, false, '...', 0)
'foo bar baz qux'|truncate(2)
'foobarbazqux'|truncate(6, leeway=0)
'foo bar'|truncate(3, end='')
lines|indent
lines|indent(2)
lines|indent(2, true)
lines|indent(2, blank=true)
lines|indent('>>')
lines|indent(width=1, first=true, blank=true)
''|indent
'a\n'|indent
5|indent
'a b/c?d=é&f'|urlencode
{'a b': 'c/d', 'e': 1}|urlencode
[('a', 'b c')]|urlencode
5|urlencode
{'class': 'x', 'id': none, 'q': '<'}|xmlattr
{'a': 1}|xmlattr(false)
{'a b': 1}|xmlattr
5|filesizeformat
1|filesizeformat
1000|filesizeformat
1500000|filesizeformat
1500000|filesizeformat(true)
1023|filesizeformat(true)
'2048'|filesizeformat
1e30|filesizeformat
d|attr('items') is callable
d|attr('a')
s|attr('upper') is defined
s|attr('nope') is defined
l|tojson
d|tojson
mix|tojson
dd|tojson
dd|tojson(indent=2)
dd|tojson(indent=0)
dd|tojson(indent='--')
d|tojson(sort_keys=true)
d|tojson(separators=(',', ':'))
d|tojson(separators=[' , ', ' : '])
dd|tojson(indent=1, separators=(',', ':'))
[]|tojson
{}|tojson
[]|tojson(indent=2)
{}|tojson(indent=2)
[[], {}]|tojson(indent=2)
u|tojson
u|tojson(ensure_ascii=true)
u|tojson(ensure_ascii=false)
u|tojson(true)
html|tojson
'\x00\x1f\x7f\u2028"\\/\b\f\n\r\t'|tojson
'\x7f\u00ff'|tojson(ensure_ascii=true)
1.0|tojson
1e5|tojson
1e16|tojson
1e-7|tojson
(1e300*1e300)|tojson
true|tojson
none|tojson
none_v|tojson
(1, 2)|tojson
{1: 2, none: 3, true: 4, 1.5: 5}|tojson
{(1, 2): 3}|tojson
{'b': 1, 'a': 2}|tojson(sort_keys=true)
{1: 2, 'a': 3}|tojson(sort_keys=true)
range(3)|tojson
(l|map('string'))|tojson
d.items()|tojson
namespace(a=1)|tojson
d|tojson(bad=1)
d|tojson(separators=1)
s|tojson|length
exp
tiny
big
[big, exp, tiny, one]
big|tojson
big + 1.0
exp|int
big == big
big > 5
big|string|length
dict(a=1, b=2)
dict({'x': 1}, y=2)
dict([('a', 1), ('b', 2)])
dict(1)
dict([1])
dict(**{'a': 1})
dict(a=1)['a']
namespace(a=1).a
namespace(a=1).b
namespace(a=1).b is defined
namespace({'x': 5}).x
namespace(a=1)
namespace(a=1)['a']
cycler('a', 'b').next()
cycler()
joiner()
strftime_now('%Y-%m-%d %H:%M:%S')
strftime_now('%d %B %Y, %A %a %b %j %p %I %y %%')
strftime_now('%-d/%-m/%e|%_d')
strftime_now('%c|%x|%X|%D|%F|%T|%R')
strftime_now('%U %W %V %G %u %w %s')|length > 10
strftime_now('%U %W %V %G %g %u %w %C %h %n%t|%k|%l|%P|%f|%Z|%z|')
strftime_now('%^a %^B %#p')
strftime_now('plain é')
strftime_now('%')
strftime_now(1)
raise_exception('boom')
raise_exception('boom: ' ~ i)
raise_exception()
loop
varargs
caller()
s.format
s.__class__
s.__class__.__mro__
''.__class__.__base__
l.__len__()
d.__getitem__('a')
i.__add__(1)
range.__globals__
2.5.is_integer()
(2.0).is_integer()
(5).bit_length()
i()
'a'()
[1]()
none()
s.upper(1)
s.upper(x=1)
d.get()
d.get(key='a')
s|upper(1)
s|upper(x=1)
s|default(1, 2, 3, 4)
s|replace
s|replace('a')
s|replace(old='l', new='x')
s|trim(chars='H')
s|trim(nope='H')
l|join(d='-')
l|join('-', d='+')
s.split(sep=',', sep=',')
range(*[1, 5])|list
range(*[1], *[5])
dict(**{'a': 1}, b=2)
dict(**5)
range(*5)
'{}-{}'.format(*['a', 'b'])
'{a}'.format(**{'a': 1})
s[0]['x']
s.0
(1).0
[1][0][0]
{'a': {'b': 1}}['a']['b']
{'a': [1, 2]}.a[1]
'abc'[1]
"%s" % "a" ~ "b"
'a' 'b' ~ 'c'
(((((1)))))
[[[[[1]]]]]
{'a': {'b': {'c': 1}}}
i if i is defined else 0
(i, s)
i,
[i for i in l]
lambda x: x
i = 1
i ? 1 : 2
i && 1
i === 1
!i
1 +
(1
[1
{1
{'a': }
'abc
"abc
i|
i is
i.
i[
i[]
i[1:2:3:4]
i..x
1.2.3
1a
@
$
`x`
\
'''

TEMPLATES = r'''
{{ 1 }}{{ 2 }}
a {{ i }} b
{% if t %}yes{% endif %}
{% if nope %}yes{% else %}no{% endif %}
{% if nope %}1{% elif t %}2{% else %}3{% endif %}
{% if nope %}1{% elif nope %}2{% elif t %}3{% endif %}
{% if t: %}x{% endif %}
{% for x in l %}{{ x }},{% endfor %}
{% for x in el %}{{ x }}{% else %}empty{% endfor %}
{% for x in undefined_thing %}{{ x }}{% else %}empty{% endfor %}
{% for x in none_v %}{{ x }}{% endfor %}
{% for x in 5 %}{{ x }}{% endfor %}
{% for c in u %}[{{ c }}]{% endfor %}
{% for k in d %}{{ k }} {% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d|dictsort %}{{ k }}={{ v }};{% endfor %}
{% for a, b in [[1, 2], [3, 4]] %}{{ a }}-{{ b }} {% endfor %}
{% for (a, b), c in [[[1, 2], 3]] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for a, b in [[1]] %}{{ a }}{% endfor %}
{% for a, b in [[1, 2, 3]] %}{{ a }}{% endfor %}
{% for a, b in ['xy', 'zw'] %}{{ a }}{{ b }} {% endfor %}
{% for a, b in [5] %}{% endfor %}
{% for x in l if x > 1 %}{{ x }}{% endfor %}
{% for x in l if x > 9 %}{{ x }}{% else %}none{% endfor %}
{% for x in nums if x is odd %}{{ loop.index }}:{{ x }}{{ '' if loop.last else ', ' }}{% endfor %}
{% for x in nums if x is odd %}{{ loop.length }}{{ loop.revindex }} {% endfor %}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }} {% endfor %}
{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}
{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }} {% endfor %}
{% for x in l %}{{ loop.previtem.foo }}{% endfor %}
{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}
{% for x in l %}{{ loop.cycle() }}{% endfor %}
{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }} {% endfor %}
{% for x in l %}{{ loop.depth }}{{ loop.depth0 }}{% for y in l %}{{ loop.depth }}{% endfor %} {% endfor %}
{% for x in l %}{{ loop }}{% endfor %}
{% for x in l %}{{ loop.nope }}{% endfor %}
{% for x in l %}{{ loop.nope.x }}{% endfor %}
{% for x in l %}{% for y in ls %}{{ loop.index }}{{ x }}{{ y }} {% endfor %}{{ loop.index }};{% endfor %}
{% for x in l %}{% set outer = loop %}{% for y in ls %}{{ outer.index }}.{{ loop.index }} {% endfor %}{% endfor %}
{{ loop is defined }}{% for x in l %}{{ loop is defined }}{% endfor %}{{ loop is defined }}
{% for x in (l|map('string')) %}{{ loop.last }}{{ loop.length }} {% endfor %}
{% for x in l|map('string') %}{{ x }}{% if not loop.last %},{% endif %}{% endfor %}
{% for x in range(3) %}{{ loop.revindex }}{% endfor %}
{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}
{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in l %}{{ x }}{% break %}{% else %}e{% endfor %}
{% for x in l %}{% for y in ls %}{% if y == 'A' %}{% break %}{% endif %}{{ y }}{% endfor %}{{ x }}{% endfor %}
{% break %}
{% continue %}
{% for x in l %}{% endfor %}{{ x }}
{% set x = 0 %}{% for x in l %}{{ x }}{% endfor %}{{ x }}
{% set x = 0 %}{% for y in l %}{% set x = y %}{{ x }}{% endfor %}{{ x }}
{% set x = 0 %}{% for y in l %}{{ x }}{% set x = x + y %}{{ x }} {% endfor %}{{ x }}
{% for y in l %}{% if y == 1 %}{% set z = 5 %}{% endif %}{{ z is defined }}{{ z }} {% endfor %}
{% set ns = namespace(x=0) %}{% for y in l %}{% set ns.x = ns.x + y %}{% endfor %}{{ ns.x }}
{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b is defined }}
{% set ns = namespace(items=[]) %}{% for y in l %}{% set ns.items = ns.items + [y] %}{% endfor %}{{ ns.items }}
{% set d.x = 1 %}
{% set undefined_thing.x = 1 %}
{% set ns = namespace(x=1) %}{% set ns.x, y = 2, 3 %}{{ ns.x }}{{ y }}
{% set a = 1 %}{{ a }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}
{% set a = 1, 2 %}{{ a }}
{% set (a, b) = [3, 4] %}{{ a }}{{ b }}
{% set a, b = [1] %}
{% set a %}body {{ i }}{% endset %}[{{ a }}]
{% set a | upper %}body {{ i }}{% endset %}[{{ a }}]
{% set a | replace('b', 'x') | upper %}body{% endset %}[{{ a }}]
{% set a %}{% set inner = 1 %}{{ inner }}{% endset %}{{ a }}{{ inner is defined }}
{% set 1 = 2 %}
{% set a.b.c = 2 %}
{% set a['x'] = 2 %}
{% set a = %}
{% set a %}
{% if t %}{% set q = 1 %}{% endif %}{{ q }}
{% if nope %}{% set q = 1 %}{% endif %}{{ q }}|{{ q is defined }}
{% if nope %}{% set i = 1 %}{% endif %}{{ i }}
{% set i = i + 1 %}{{ i }}
{% macro m(a, b=2) %}{{ a }}-{{ b }}{% endmacro %}{{ m(1) }} {{ m(1, 3) }} {{ m(b=5, a=4) }} {{ m() }}
{% macro m(a, b=a) %}{{ a }}-{{ b }}{% endmacro %}{{ m(1) }} {{ m(1, 3) }}
{% macro m(a, b=a ~ 'x', c=b ~ 'y') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}
{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}
{% macro m(a) %}{{ a.x }}{% endmacro %}{{ m() }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, b=2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}
{% macro m(a, b) %}{% endmacro %}{{ m.name }} {{ m.arguments }}
{% macro m() %}{{ varargs }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}
{% macro m() %}{{ kwargs }}{% endmacro %}{{ m(a=1, b=2) }}
{% macro m() %}{{ i }}{% endmacro %}{{ m() }}
{% set v = 1 %}{% macro m() %}{{ v }}{% endmacro %}{% set v = 2 %}{{ m() }}
{% macro m() %}{{ later }}{% endmacro %}{% set later = 2 %}{{ m() }}
{% macro m() %}{% set v = 5 %}{{ v }}{% endmacro %}{{ m() }}{{ v is defined }}
{% macro m(n) %}{{ n }}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(3) }}
{% macro a() %}A{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}
{% for x in l %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}
{% for x in l %}{% macro m() %}{{ x }}{% endmacro %}{% endfor %}{{ m is defined }}
{% if t %}{% macro m() %}in if{% endmacro %}{% endif %}{{ m() }}
{% macro m() %}{% for x in l %}{{ loop.index }}{% endfor %}{% endmacro %}{% for q in l %}{{ m() }} {% endfor %}
{% macro m() %}{{ loop is defined }}{% endmacro %}{% for q in l %}{{ m() }}{% endfor %}
{% macro m() %}{{ x is defined }}{% endmacro %}{% for x in l %}{{ m() }}{% endfor %}
{% macro m(l) %}{{ l }}{% endmacro %}{{ m([9]) }}{{ l }}
{% macro m() %} x {% endmacro %}[{{ m() }}][{{ m()|trim }}]{{ m()|length }}
{% macro m() -%} x {%- endmacro %}[{{ m() }}]
{% macro m(a=[]) %}{{ a }}{% endmacro %}{{ m() }}{{ m }}
{% macro m(a, a) %}{% endmacro %}
{% macro m(a=1, b) %}{% endmacro %}
{% macro m(1) %}{% endmacro %}
{% macro %}{% endmacro %}
{% macro m() %}{% endmacro %}{{ m() == '' }}
{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}body{% endcall %}
{% macro m() %}<{{ caller('x') }}>{% endmacro %}{% call(a) m() %}body {{ a }}{% endcall %}
{% macro m(q) %}{{ q }}{{ caller(1, 2) }}{% endmacro %}{% call(a, b=5) m('q') %}{{ a }}{{ b }}{% endcall %}
{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}
{% macro m() %}{% if caller %}{{ caller() }}{% else %}none{% endif %}{% endmacro %}{{ m() }}{% call m() %}x{% endcall %}
{% macro m() %}x{% endmacro %}{% call m() %}y{% endcall %}
{% macro m() %}{{ caller() }}{% endmacro %}{% for x in l %}{% call m() %}{{ x }}{{ loop.index }}{% endcall %}{% endfor %}
{% macro m(caller=none) %}{{ caller() if caller else 'no' }}{% endmacro %}{{ m() }}{% call m() %}y{% endcall %}
{% macro m(caller) %}{% endmacro %}
{% call 5 %}{% endcall %}
{% call m %}{% endcall %}
{% filter upper %}abc {{ s }}{% endfilter %}
{% filter upper|replace('B', 'x') %}abc{% endfilter %}
{% filter indent(2) %}a
b{% endfilter %}
{% filter nosuch %}{% endfilter %}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}
{% with a = i, b = a %}{{ b }}{% endwith %}
{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z is defined }}
{% with a = 1 %}{% with a = 2 %}{{ a }}{% endwith %}{{ a }}{% endwith %}
{% raw %}{{ not }} {% this %}{% endraw %}
{% raw -%}  {{ x }}  {%- endraw %} y
a {%- raw %} {{ x }} {% endraw -%} b
{% raw %}no end
{% block b %}in block {{ i }}{% endblock %}
{% block b %}x{% endblock b %}
{% set v = 1 %}{% block b %}{{ v }}{% endblock %}
{% for x in l %}{% block b scoped %}{{ x }}{% endblock %}{% endfor %}
{% for x in l %}{% block b %}{{ x }}{% endblock %}{% endfor %}
{% generation %}gen {{ i }}{% endgeneration %}
{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ loop.index }}{% endgeneration %}{% endif %}{% endfor %}
{% generation %}{% set gv = 1 %}{% endgeneration %}{{ gv is defined }}
{% autoescape true %}{{ html }}{{ html|safe }}{{ 'a' ~ '<' }}{% endautoescape %}{{ html }}
{% autoescape false %}{{ html }}{% endautoescape %}
{% print 1, 'a' %}
{% print(1) %}
{% do l.append(1) %}
{% include 'x' %}
{% if nope %}{% include 'x' %}{% endif %}ok
{% import 'x' as y %}
{% from 'x' import y %}
{% extends 'x' %}
{% nosuchtag %}
{% %}
{% if %}{% endif %}
{% if t %}
{% endif %}
{% else %}
{% for x in l %}
{% for in l %}{% endfor %}
{% for x l %}{% endfor %}
{% for x in l %}{% endif %}
{% if t %}{% endfor %}
{% endfor %}
{{
{{ i
{{ i }
{% if t
{#
{# open
{{ }}
{{ i }} }}
{{ {'a': {'b': 1}} }}
{{ {'a': {'b': 1}}['a'] }}
{{ '}}' }}
{{ "{{" }}
{{ '{%' }}{% if '%}' %}x{% endif %}
a{# comment #}b
a{#- comment -#} b
  {# own line #}
x
a {#+ c +#} b
{#-#}x
{# {{ i }} {% if %} #}
{# multi
line #}
end
a
{%- if t %} b {% endif -%}
c
a {{- i -}} b
a {{ i -}}   b
a   {{- i }} b
  {% if t %}
  x
  {% endif %}
y
  {%+ if t %}
  x
  {%+ endif %}
y
{% if t +%}
x
{% endif +%}
y
	{% if t %}	x{% endif %}	
  text {% if t %}x{% endif %}
{% for x in l %}
  - {{ x }}
{% endfor %}
end
{% for x in l -%}
  - {{ x }}
{%- endfor %}
end
{% for x in l %}

{{ x }}

{% endfor %}
{{ i }}
{{ s }}


trailing


  {{ i }}
  {{- i }}
{%- set a = 1 -%}
  {{ a }}
{{ 'a
b' }}
{{+5}}{{-5}}{{- -5}}
{{i}}{{i|string}}{{i+1}}{{i-1}}
{%if t%}x{%endif%}
{%- if t -%}x{%- endif -%}
{% set x = {'a': 1, 'b': [1, {'c': 2}]} %}{{ x.b[1].c }}
{% set x = namespace(v='a') %}{% set x.v = x.v ~ 'b' %}{{ x.v }}
{% for x in [1, 2] recursive %}{{ x }}{% endfor %}
{% for x in [{'v': 1, 'c': [{'v': 2, 'c': []}, {'v': 3}]}] recursive %}{{ x.v }}{{ loop.depth }}{% if x.c %}({{ loop(x.c) }}){% endif %}{% endfor %}
{% for x in l %}{{ loop(l) }}{% endfor %}
{% set it = l|map('string') %}{{ it|list }}{{ it|list }}
{% set it = l|reverse %}{{ it|list }}{{ it|list }}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}
{% set j = joiner(', ') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}
{% set x = 5 %}{{ x if x > 3 else 'small' }}
{% set ns = namespace(found=false) %}{% for m in messages %}{% if m.role == 'user' and not ns.found %}{{ m.content }}{% set ns.found = true %}{% endif %}{% endfor %}
{% for m in messages[::-1] %}{{ loop.index0 }}{{ m.role[0] }}{% endfor %}
{% if messages[0]['role'] == 'system' %}{% set sys = messages[0]['content'] %}{% set rest = messages[1:] %}{% endif %}{{ sys }}{{ rest|length }}
{% if undefined_thing %}x{% endif %}{% if undefined_thing.x is defined %}{% endif %}
{% if undefined_thing is defined and undefined_thing.x %}x{% else %}y{% endif %}
{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ loop.index }}{% endif %}{% endfor %}
{{ raise_exception('stop') if i > 5 }}
{% if i > 5 %}{{ raise_exception('stop: ' + s) }}{% endif %}
{% set x = undefined_thing %}{{ x is defined }}
{% set x = none %}{{ x is defined }}{{ x }}
{{ [none, true, 1.0, 'a', undefined_thing] }}
{% set m = {'a': none} %}{{ m.a }}{{ m.a is none }}{{ m.b is none }}
{%- for tool in [{'name': 'f', 'parameters': {'type': 'object', 'properties': {}}}] %}{{ tool | tojson(indent=4) }}{% endfor %}
{% if l %}a{% endif %}{% if el %}b{% endif %}{% if ed %}c{% endif %}{% if e %}d{% endif %}{% if zero %}e{% endif %}{% if 0.0 %}f{% endif %}{% if none %}g{% endif %}
{% if l|map('string') %}always{% endif %}{% if el|map('string') %}always{% endif %}
{% if range(0) %}x{% else %}y{% endif %}
{% if d.items() %}x{% endif %}{% if ed.items() %}y{% endif %}
{% set loop = 5 %}{{ loop }}
{% for loop in l %}{{ loop }}{% endfor %}
{% for x in l %}{% set loop = 5 %}{{ loop }}{% endfor %}
{% set range = 5 %}{{ range }}
{% set messages = messages[1:] %}{{ messages|length }}
{% for x in l %}{% set i = x %}{% endfor %}{{ i }}
{% macro m() %}{% set i = 99 %}{{ i }}{% endmacro %}{{ m() }}{{ i }}
{% set x %}{{ i }}{% endset %}{{ x is string }}{{ x + 'a' }}
{% set x = 'abc' %}{% set y = x[1:] %}{{ x }}{{ y }}{{ x ~ y }}{{ x + y }}{{ x }}
{% set a = 'x' %}{% set b = a + 'y' %}{% set c = b + 'z' %}{% set d2 = b + 'w' %}{{ a }} {{ b }} {{ c }} {{ d2 }}
{% set ns = namespace(s='') %}{% for x in nums %}{% set ns.s = ns.s + x|string %}{% endfor %}{{ ns.s }}
{% for k, v in {'a': 1, 'b': {'c': 2}}.items() %}{% if v is mapping %}{{ v|tojson }}{% else %}{{ v }}{% endif %}{% endfor %}
{% set t2 = [1, 2] + [3] %}{{ t2 }}{{ t2|length }}
{{ 'x' if i == 7 and s is string and not nope and 'a' in d and 3 not in [1] }}
{{ ('a' if t else 'b') ~ ('c' if nope else 'd') }}
{{ "a" if nope }}{{ "b" if t }}
{%- set eos = '</s>' %}{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}{{ eos if not loop.last }}
{% endfor %}
{{ messages|tojson }}
{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% set i = 1 %}{{ m() }}
{% for x in l %}{{ i }}{% endfor %}{% set i = 1 %}{{ i }}
{% for x in l %}{{ i }}{% endfor %}{% if t %}{% set i = 1 %}{% endif %}{{ i }}
{% for x in l %}{{ i }}{% endfor %}{% set i = i + 1 %}{{ i }}
{% set q %}{{ i }}{% endset %}{% set i = 1 %}{{ q }}{{ i }}
{% macro i() %}x{% endmacro %}{{ i() }}
{% for a, b in [[1, 2], [3, 4]] if b %}{{ loop.previtem }}{% endfor %}
{% filter length %}abc{% endfilter %}
{% for k, v in 'abc'|items %}{% endfor %}
{{ ('abc'|items) is defined }}
{{ [{'a': 1}, {'b': 2}]|sort(attribute='c') }}
{{ [{'a': 1}, {'a': 2}, {}]|sort(attribute='a') }}
{{ i[0:1] }}
{{ d[0:1] }}
{{ none_v[1:] }}
{{ users|tojson(indent=2) }}
{{ d.items()|list|tojson }}
{{ '%s: %s' % (s, i) }}{{ "%d items" % l|length }}
'''


def split_templates(text):
    """One a line; a line that does not start with a tag or comment goes on with the one before it."""
    out = []
    for line in text.strip("\n").split("\n"):
        out.append(line)
    return out


MULTILINE = [
    "a\n{%- if t %} b {% endif -%}\nc",
    "  {# own line #}\nx",
    "  {% if t %}\n  x\n  {% endif %}\ny",
    "  {%+ if t %}\n  x\n  {%+ endif %}\ny",
    "{% if t +%}\nx\n{% endif +%}\ny",
    "\t{% if t %}\tx{% endif %}\t\n",
    "{% for x in l %}\n  - {{ x }}\n{% endfor %}\nend",
    "{% for x in l -%}\n  - {{ x }}\n{%- endfor %}\nend",
    "{% for x in l %}\n\n{{ x }}\n\n{% endfor %}\n",
    "{{ i }}\n", "{{ i }}\n\n", "\n", "", "\n\n\n", "a\r\nb\rc\n", "a\r\n", "{% if t %}\r\nx\r\n{% endif %}\r\n",
    "  {{ i }}\n  {{- i }}", "{%- set a = 1 -%}\n  {{ a }}", "{{ 'a\nb' }}", "{# multi\nline #}\nend",
    "x\n   {# c #}   \ny", "x {# c #}\ny", "x\n  {#- c #}\ny", "x\n  {# c -#}\n\n y", "x\n  {# c +#}\ny",
    "{% raw %}\n{{ x }}\n{% endraw %}\ny", "  {% raw %}  x  {% endraw %}  y", "{%- raw -%}\n x \n{%- endraw -%}\n y",
    "{% macro m(x) %}\n  [{{ x }}]\n{% endmacro %}\n{{ m(1) }}{{ m(2) }}",
    "{% set x %}\n  body\n{% endset %}\n[{{ x }}]",
    "{% filter upper %}\n  body\n{% endfilter %}\nx",
    "  a  {%- if t -%}  b  {%- endif -%}  c  ",
    "\u3000{%- if t %}x{% endif %}", "\u00a0\n {% if t %}x{% endif %}", "x\u2028{% if t %}y{% endif %}",
    "{{ i }}{# a #}{# b #}{{ i }}", "{% if t %}{% endif %}\n\nx", "{% if t %}\n\nx{% endif %}",
    "é{% if t %}\n  日本\n{% endif %}\n🙂", "{{i}}\n{{i}}\n", "{{ i }}\n{%- if t %}\n{{ i }}\n{% endif %}\n",
    "{% if true %}\n{% if true %}\n  x\n{% endif %}\n{% endif %}\n",
    "line\n  {% if t %} inline {% endif %} tail\n", "{% call(x) nomacro() %}{% endcall %}",
    "{%\n if\n t\n %}x{%\n endif\n %}", "{{\ni\n}}", "{{ [\n1,\n2\n] }}", "{%- if t %}\n\n  x\n\n{%- endif %}\n\ny",
    "{% for m in messages %}\n{{- '<|' + m.role + '|>\n' + m.content }}\n{% endfor %}\n{% if add_generation_prompt %}<|a|>{% endif %}",
    "{{ 1 }\n}", "{% set s = \"a\\nb\" %}{{ s }}", "{{ '\\u65e5' ~ '\\'' }}", "{#", "{% raw %}", "{{ 'a' }", "{{ a b }}",
    "{% if i == 7 %}\n  {% set r = 'seven' %}\n{% else %}\n  {% set r = 'other' %}\n{% endif %}\n{{ r }}",
]


def run(template):
    try:
        return {"r": env.from_string(template).render(**copy.deepcopy(CONTEXT))}  # |indent changes a list
    except RecursionError:
        return None
    except Exception as e:  # every failure of the reference is a case
        return {"e": f"{type(e).__name__}: {e}".split("\n")[0][:200]}


def main():
    templates = ["{{ " + x + " }}" for x in EXPRESSIONS.strip("\n").split("\n")]
    # an expression whose escapes hold a line break spans two lines of the list
    joined = [t for t in templates if t not in ("{{ 'a\\ }}", "{{ b' }}")] + ["{{ 'a\\\nb' }}"]
    seen = set()
    print(json.dumps({"context": CONTEXT, "now": NOW.strftime("%Y-%m-%d %H:%M:%S")}, ensure_ascii=False))
    for t in joined + split_templates(TEMPLATES) + MULTILINE:
        if t in seen:
            continue
        seen.add(t)
        r = run(t)
        if r is None or " object at 0x" in r.get("r", "") or "<built-in" in r.get("r", "") or "<function" in r.get("r", ""):
            continue  # an address is no result
        if "\ufffd" in str(r) or any(0xD800 <= ord(c) < 0xE000 for c in r.get("r", "")):
            continue
        print(json.dumps({"t": t, **r}, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
