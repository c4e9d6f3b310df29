/* strftime_now: the C locale's names, whatever the process has set, and Python's result where it differs from C. */
#include "text/template_int.h"

#include <string.h>
#include <time.h>

static const char *const days[] = { "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday" };
static const char *const months[] = { "January", "February", "March",     "April",   "May",      "June",
                                      "July",    "August",   "September", "October", "November", "December" };

/* pad: the directive's own, or what a flag asked for ('-' none, '_' blanks, '0' zeros). */
static void number(ks_tsb *b, int64_t v, int width, char dflt, char flag)
{
    char buf[32], pad = flag ? flag : dflt;
    if (pad == '-')
        (void)snprintf(buf, sizeof buf, "%lld", (long long)v);
    else
        (void)snprintf(buf, sizeof buf, pad == '_' ? "%*lld" : "%0*lld", width, (long long)v);
    ks__sb_adds(b, buf);
}

static void name(ks_tsb *b, const char *s, size_t n, char flag)
{
    for (size_t i = 0; s[i] && i < n; i++)
        ks__sb_addc(b, flag == '^' && s[i] >= 'a' && s[i] <= 'z' ? (char)(s[i] - 32) : s[i]);
}

/* Week of the ISO year, and that year. */
static int iso_week(const struct tm *t, int *ret_year)
{
    int wday = (t->tm_wday + 6) % 7, week = (t->tm_yday - wday + 10) / 7, year = t->tm_year + 1900;
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    int jan1 = ((wday - t->tm_yday) % 7 + 7) % 7;
    if (week < 1) {
        year--;
        leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        int before = ((jan1 - (leap ? 366 : 365)) % 7 + 7) % 7; /* weekday of that year's first day */
        week = before == 3 || (before == 2 && leap) ? 53 : 52;
    } else if (week == 53 && !(jan1 == 3 || (jan1 == 2 && leap))) {
        week = 1;
        year++;
    }
    *ret_year = year;
    return week;
}

static void format(ks_tsb *b, const char *p, const char *end, const struct tm *t, int64_t unix_s);

static bool composite(ks_tsb *b, char c, const struct tm *t, int64_t unix_s)
{
    static const struct {
        char c;
        const char *fmt;
    } rows[] = { { 'c', "%a %b %e %H:%M:%S %Y" },
                 { 'x', "%m/%d/%y" },
                 { 'D', "%m/%d/%y" },
                 { 'X', "%H:%M:%S" },
                 { 'T', "%H:%M:%S" },
                 { 'R', "%H:%M" },
                 { 'F', "%Y-%m-%d" },
                 { 'r', "%I:%M:%S %p" } };
    for (size_t i = 0; i < KS_COUNT(rows); i++)
        if (rows[i].c == c) {
            format(b, rows[i].fmt, rows[i].fmt + strlen(rows[i].fmt), t, unix_s);
            return true;
        }
    return false;
}

static bool directive(ks_tsb *b, char c, char flag, const struct tm *t, int64_t unix_s)
{
    int hour12 = t->tm_hour % 12 ? t->tm_hour % 12 : 12, wday = (t->tm_wday + 6) % 7, year, week = iso_week(t, &year);
    switch (c) {
    case 'Y': number(b, t->tm_year + 1900, 4, '-', flag); break;
    case 'C': number(b, (t->tm_year + 1900) / 100, 2, '0', flag); break;
    case 'y': number(b, (t->tm_year + 1900) % 100, 2, '0', flag); break;
    case 'm': number(b, t->tm_mon + 1, 2, '0', flag); break;
    case 'd': number(b, t->tm_mday, 2, '0', flag); break;
    case 'e': number(b, t->tm_mday, 2, '_', flag); break;
    case 'H': number(b, t->tm_hour, 2, '0', flag); break;
    case 'k': number(b, t->tm_hour, 2, '_', flag); break;
    case 'I': number(b, hour12, 2, '0', flag); break;
    case 'l': number(b, hour12, 2, '_', flag); break;
    case 'M': number(b, t->tm_min, 2, '0', flag); break;
    case 'S': number(b, t->tm_sec, 2, '0', flag); break;
    case 'f': number(b, 0, 6, '0', flag); break; /* the clock is read in seconds */
    case 'j': number(b, t->tm_yday + 1, 3, '0', flag); break;
    case 'u': number(b, wday + 1, 1, '0', flag); break;
    case 'w': number(b, t->tm_wday, 1, '0', flag); break;
    case 'U': number(b, (t->tm_yday + 7 - t->tm_wday) / 7, 2, '0', flag); break;
    case 'W': number(b, (t->tm_yday + 7 - wday) / 7, 2, '0', flag); break;
    case 'V': number(b, week, 2, '0', flag); break;
    case 'G': number(b, year, 4, '-', flag); break;
    case 'g': number(b, year % 100, 2, '0', flag); break;
    case 's': number(b, unix_s, 1, '-', flag); break;
    case 'a': name(b, days[t->tm_wday], 3, flag); break;
    case 'A': name(b, days[t->tm_wday], 16, flag); break;
    case 'b':
    case 'h': name(b, months[t->tm_mon], 3, flag); break;
    case 'B': name(b, months[t->tm_mon], 16, flag); break;
    case 'p': ks__sb_adds(b, flag == '#' ? (t->tm_hour < 12 ? "am" : "pm") : (t->tm_hour < 12 ? "AM" : "PM")); break;
    case 'P': ks__sb_adds(b, t->tm_hour < 12 ? "am" : "pm"); break;
    case 'n': ks__sb_addc(b, '\n'); break;
    case 't': ks__sb_addc(b, '\t'); break;
    case '%': ks__sb_addc(b, '%'); break;
    case 'Z':
    case 'z': break; /* a time without a zone, as the reference's now() */
    default: return composite(b, c, t, unix_s);
    }
    return true;
}

static void format(ks_tsb *b, const char *p, const char *end, const struct tm *t, int64_t unix_s)
{
    while (p < end) {
        const char *begin = p;
        if (*p != '%') {
            ks__sb_addc(b, *p++);
            continue;
        }
        p++;
        char flag = p < end && *p && strchr("-_0^#", *p) ? *p++ : 0;
        if (p < end && directive(b, *p, flag, t, unix_s)) {
            p++;
            continue;
        }
        if (p < end) p++;
        ks__sb_add(b, begin, (size_t)(p - begin)); /* unknown: left as it stands */
    }
}

ks_tv ks__strftime(ks_trun *r, const ks_tstr *fmt, int64_t unix_s)
{
    struct tm t;
    time_t when = (time_t)unix_s;
    ks_tsb b;
    ks__sb_init(&b, r);
    b.now = ks__str_from(fmt);
    if (!localtime_r(&when, &t)) ks__tr_fail(r, "strftime_now: the time %lld has no date", (long long)unix_s);
    format(&b, fmt->p, fmt->p + fmt->n, &t, unix_s);
    return ks__sb_take(&b, false);
}
