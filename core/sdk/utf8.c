/* UTF-8 after table 3-7 of the Unicode standard: no overlong forms, no surrogates, at most U+10FFFF.
 * Pure functions, no state. [any]
 */
#include <krasis/json.h>

uint32_t ks_utf8_decode(const char *s, size_t n, uint32_t *ret_cp)
{
    const unsigned char *p = (const unsigned char *)s;
    if (!n) return 0;
    if (p[0] < 0x80) {
        *ret_cp = p[0];
        return 1;
    }
    if (p[0] < 0xc2 || p[0] > 0xf4) return 0; /* a continuation, C0/C1 (overlong), above U+10FFFF */
    if (n < 2) return 0;
    if (p[0] < 0xe0) {
        if ((p[1] & 0xc0) != 0x80) return 0;
        *ret_cp = (uint32_t)(p[0] & 0x1f) << 6 | (p[1] & 0x3f);
        return 2;
    }
    /* The second byte's range excludes overlong forms (E0, F0), surrogates (ED) and the end (F4). */
    unsigned lo = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;
    unsigned hi = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;
    if (p[1] < lo || p[1] > hi || n < 3 || (p[2] & 0xc0) != 0x80) return 0;
    if (p[0] < 0xf0) {
        *ret_cp = (uint32_t)(p[0] & 0x0f) << 12 | (uint32_t)(p[1] & 0x3f) << 6 | (p[2] & 0x3f);
        return 3;
    }
    if (n < 4 || (p[3] & 0xc0) != 0x80) return 0;
    *ret_cp =
        (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3f) << 12 | (uint32_t)(p[2] & 0x3f) << 6 | (p[3] & 0x3f);
    return 4;
}

size_t ks_utf8_valid(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint64_t w; /* eight ASCII bytes at a time: most of any JSON file */
        if (n - i >= sizeof w) {
            memcpy(&w, s + i, sizeof w);
            if (!(w & UINT64_C(0x8080808080808080))) {
                i += sizeof w;
                continue;
            }
        }
        uint32_t cp, len = ks_utf8_decode(s + i, n - i, &cp);
        if (!len) break;
        i += len;
    }
    return i;
}

uint32_t ks_utf8_encode(uint32_t cp, char dst[4])
{
    if (cp < 0x80) {
        dst[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        dst[0] = (char)(0xc0 | cp >> 6);
        dst[1] = (char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        if (cp >= 0xd800 && cp < 0xe000) return 0;
        dst[0] = (char)(0xe0 | cp >> 12);
        dst[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        dst[2] = (char)(0x80 | (cp & 0x3f));
        return 3;
    }
    if (cp > 0x10ffff) return 0;
    dst[0] = (char)(0xf0 | cp >> 18);
    dst[1] = (char)(0x80 | (cp >> 12 & 0x3f));
    dst[2] = (char)(0x80 | (cp >> 6 & 0x3f));
    dst[3] = (char)(0x80 | (cp & 0x3f));
    return 4;
}
