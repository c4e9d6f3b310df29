/* Guarded memory, fault catching and the checks that all ops share. Not thread-safe: one suite at a time. */
#include "suite.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PATTERN 0xa5

/* A signal handler has no other way to know; set only inside suite_call. */
static sigjmp_buf fault_jump;
static void *volatile fault_address;
static volatile int fault_signal;

static void on_fault(int sig, siginfo_t *info, void *context)
{
    (void)context;
    fault_signal = sig;
    fault_address = info->si_addr;
    siglongjmp(fault_jump, 1);
}

int suite_fail(suite *s, int rule, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    (void)snprintf(s->why, s->cap, "%s: %s: %s", s->row->name, s->what, text); /* cut off is fine: it is for people */
    return rule;
}

uint64_t suite_random(suite *s)
{
    uint64_t z = s->rng += UINT64_C(0x9e3779b97f4a7c15); /* splitmix64 */
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint32_t suite_below(suite *s, uint32_t n)
{
    return (uint32_t)(suite_random(s) >> 32) % n;
}

float suite_normal(suite *s)
{
    double sum = -6; /* twelve uniform numbers: near enough */
    for (int i = 0; i < 12; i++) sum += (double)(suite_random(s) >> 11) * 0x1p-53;
    return (float)sum;
}

void suite_normals(suite *s, float *p, size_t n, float scale)
{
    if (!p) return; /* no_memory is set and seen later */
    for (size_t i = 0; i < n; i++) p[i] = scale * suite_normal(s);
}

static void *new_buf(suite *s, const char *name, size_t bytes, bool output)
{
    if (s->no_memory || s->n_bufs == SUITE_BUFS) {
        s->no_memory = true;
        return NULL;
    }
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (bytes + 64 + page - 1) / page * page;
    suite_buf *b = &s->bufs[s->n_bufs];
    *b = (suite_buf) { .name = name, .bytes = bytes, .map_bytes = body + 2 * page, .output = output };
    b->map = mmap(NULL, b->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->map == MAP_FAILED) {
        s->no_memory = true;
        return NULL;
    }
    s->n_bufs++;
    b->p = b->map + page + body - bytes;
    if (output) {
        b->init = malloc(bytes + 1);
        b->whole = malloc(bytes + 1);
    }
    if (mprotect(b->map + page, body, PROT_READ | PROT_WRITE) != 0 || (output && (!b->init || !b->whole))) {
        s->no_memory = true;
        return NULL;
    }
    memset(b->map + page, PATTERN, body);
    return b->p;
}

void *suite_input(suite *s, const char *name, size_t bytes)
{
    return new_buf(s, name, bytes, false);
}

void *suite_output(suite *s, const char *name, size_t bytes)
{
    return new_buf(s, name, bytes, true);
}

void suite_free(suite *s)
{
    for (uint32_t i = 0; i < s->n_bufs; i++) {
        (void)munmap(s->bufs[i].map, s->bufs[i].map_bytes); /* cannot fail for a mapping of ours */
        free(s->bufs[i].init);
        free(s->bufs[i].whole);
    }
    s->n_bufs = 0;
    s->no_memory = false;
}

static int explain_fault(suite *s, uint32_t begin, uint32_t end)
{
    const uint8_t *at = fault_address;
    for (uint32_t i = 0; i < s->n_bufs && fault_signal == SIGSEGV; i++) {
        const suite_buf *b = &s->bufs[i];
        if (at < b->map || at >= b->map + b->map_bytes) continue;
        if (at >= b->p && at < b->p + b->bytes)
            return suite_fail(s, KS_KRN_OUTSIDE, "units %u..%u write to the input '%s'", begin, end, b->name);
        long long by = at < b->p ? (long long)(b->p - at) : (long long)(at - (b->p + b->bytes)) + 1;
        return suite_fail(s, KS_KRN_OUTSIDE, "units %u..%u touch '%s' (%zu bytes) %lld bytes %s", begin, end, b->name,
                          b->bytes, by, at < b->p ? "before its start" : "beyond its end");
    }
    return suite_fail(s, KS_KRN_OUTSIDE, "units %u..%u raise signal %d (%s)", begin, end, fault_signal,
                      strsignal(fault_signal));
}

int suite_call(suite *s, const ks_kernel *k, const void *args, uint32_t begin, uint32_t end)
{
    static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE };
    enum { N_SIGNALS = sizeof signals / sizeof signals[0] };
    struct sigaction old[N_SIGNALS], sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };
    uint32_t n_bufs = s->n_bufs;
    size_t bytes = ((size_t)k->scratch_bytes + 63) & ~(size_t)63;
    uint8_t *volatile scratch = suite_output(s, "scratch", bytes);
    volatile int rc = 0;
    if (!scratch) return suite_fail(s, -1, "out of memory");
    for (size_t i = 0; i < bytes; i++) scratch[i] = (uint8_t)(i * 167 + 255); /* floats of all kinds, NaNs too */

    for (int i = 0; i < N_SIGNALS; i++) (void)sigaction(signals[i], &sa, &old[i]); /* valid numbers: cannot fail */
    if (sigsetjmp(fault_jump, 1) == 0)
        k->fn(args, begin, end, scratch);
    else
        rc = explain_fault(s, begin, end);
    for (int i = 0; i < N_SIGNALS; i++) (void)sigaction(signals[i], &old[i], NULL);

    suite_buf *b = &s->bufs[n_bufs];
    (void)munmap(b->map, b->map_bytes);
    free(b->init);
    free(b->whole);
    s->n_bufs = n_bufs;
    return rc;
}

bool suite_same(const float *got, const float *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(got + i, want + i, 4) != 0 && !(isnan(got[i]) && isnan(want[i]))) return false;
    return true;
}

/* Bytes before each buffer that are mapped and belong to nobody. */
static int check_front(suite *s)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (uint32_t i = 0; i < s->n_bufs; i++)
        for (const uint8_t *p = s->bufs[i].map + page; p < s->bufs[i].p; p++)
            if (*p != PATTERN)
                return suite_fail(s, KS_KRN_OUTSIDE, "writes %zu bytes before '%s'", (size_t)(s->bufs[i].p - p),
                                  s->bufs[i].name);
    return 0;
}

static void restore(suite *s)
{
    for (uint32_t i = 0; i < s->n_bufs; i++)
        if (s->bufs[i].output) memcpy(s->bufs[i].p, s->bufs[i].init, s->bufs[i].bytes);
}

/* Floats with the same value or both NaN; else bytes. */
static bool same_elem(const uint8_t *a, const uint8_t *b, uint32_t elem)
{
    if (memcmp(a, b, elem) == 0) return true;
    float x, y;
    if (elem != 4) return false;
    memcpy(&x, a, 4);
    memcpy(&y, b, 4);
    return isnan(x) && isnan(y);
}

/* After units [begin, end) were run: those equal the whole run's (`rule` if not), all else is untouched. */
static int check_units(suite *s, const suite_case *c, uint32_t begin, uint32_t end, int rule, const char *how)
{
    uint32_t n_out = 0;
    for (uint32_t b = 0; b < s->n_bufs; b++) {
        const suite_buf *o = &s->bufs[b];
        if (!o->output) continue;
        uint32_t elem = n_out ? 4 : c->elem_bytes;
        for (size_t i = 0; i < o->bytes / elem; i++) {
            uint32_t unit = c->unit_of(c->args, n_out, i);
            bool ours = unit >= begin && unit < end;
            if (same_elem(o->p + i * elem, (ours ? o->whole : o->init) + i * elem, elem)) continue;
            if (ours) return suite_fail(s, rule, "%s: '%s'[%zu] differs", how, o->name, i);
            return suite_fail(s, KS_KRN_OUTSIDE, "units %u..%u write '%s'[%zu], which is not theirs", begin, end,
                              o->name, i);
        }
        n_out++;
    }
    return check_front(s);
}

static int run_whole(suite *s, const suite_case *c)
{
    restore(s);
    int rc = suite_call(s, s->row, c->args, 0, c->n_units);
    if (rc) return rc;
    for (uint32_t b = 0; b < s->n_bufs; b++)
        if (s->bufs[b].output) memcpy(s->bufs[b].whole, s->bufs[b].p, s->bufs[b].bytes);
    return check_units(s, c, 0, c->n_units, KS_KRN_SPLIT, "whole");
}

/* Random cuts, run back to front or front to back. */
static int run_split(suite *s, const suite_case *c, uint32_t pieces)
{
    uint32_t cut[9] = { 0 }, n = 0, order = suite_below(s, 2);
    while (n < pieces && cut[n] < c->n_units) {
        uint32_t left = c->n_units - cut[n];
        cut[n + 1] = n + 1 == pieces ? c->n_units : cut[n] + 1 + suite_below(s, left);
        n++;
    }
    restore(s);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = order ? n - 1 - i : i;
        int rc = suite_call(s, s->row, c->args, cut[at], cut[at + 1]);
        if (rc) return rc;
    }
    return check_units(s, c, cut[0], cut[n], KS_KRN_SPLIT, "split differently");
}

static int run_part(suite *s, const suite_case *c)
{
    uint32_t begin = suite_below(s, c->n_units), end = begin + suite_below(s, c->n_units - begin + 1);
    restore(s);
    int rc = suite_call(s, s->row, c->args, begin, end);
    return rc ? rc : check_units(s, c, begin, end, KS_KRN_SPLIT, "alone");
}

static int check_exact(suite *s, const suite_case *c)
{
    if (!s->ref) return suite_fail(s, -1, "this op needs the reference row");
    restore(s);
    int rc = suite_call(s, s->ref, c->args, 0, c->n_units);
    return rc ? rc : check_units(s, c, 0, c->n_units, KS_KRN_WRONG, "not the reference's bits");
}

/* Largest |y - want| / magnitude over the elements that units own; infinite if a NaN or infinity is out of place. */
static double worst_error(const suite_case *c, const double *y, const double *want, const double *mag, size_t n,
                          size_t *ret_at)
{
    double worst = 0;
    *ret_at = 0;
    for (size_t i = 0; i < n; i++) {
        if (c->unit_of(c->args, 0, i) == UINT32_MAX) continue;
        double e = fabs(y[i] - want[i]) / (mag[i] + 0x1p-126); /* below the normal floats, errors are absolute */
        if (isnan(want[i]) || isinf(want[i]))
            e = isnan(want[i]) ? (isnan(y[i]) ? 0 : INFINITY) : y[i] == want[i] ? 0 : INFINITY;
        if (!(e <= worst)) {
            worst = isnan(e) ? INFINITY : e;
            *ret_at = i;
        }
    }
    return worst;
}

static int check_error(suite *s, const suite_case *c)
{
    const suite_buf *o = s->bufs;
    while (!o->output) o++;
    size_t n = o->bytes / 4, at, unused;
    double *mem = calloc(n * 5 + 1, sizeof *mem);
    if (!mem) return suite_fail(s, -1, "out of memory");
    double *want = mem, *mag = mem + n, *scalar = mem + 2 * n, *got = mem + 3 * n, *mag_unused = mem + 4 * n;
    restore(s); /* evaluations read in-place inputs */
    c->eval(c->args, false, want, mag);
    c->eval(c->args, true, scalar, mag_unused);
    for (size_t i = 0; i < n; i++) got[i] = (double)((const float *)(const void *)o->whole)[i];
    double mine = worst_error(c, got, want, mag, n, &at);
    double limit = 4 * worst_error(c, scalar, want, mag, n, &unused) + c->eps;
    int rc = 0;
    if (!(mine <= limit))
        rc = suite_fail(s, KS_KRN_WRONG, "'%s'[%zu] is %.9g, in double %.9g: relative error %.3g, allowed %.3g",
                        o->name, at, got[at], want[at], mine, limit);
    free(mem);
    return rc;
}

int suite_check(suite *s, const suite_case *c)
{
    if (s->no_memory) return suite_fail(s, -1, "out of memory");
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (uint32_t i = 0; i < s->n_bufs; i++) {
        suite_buf *b = &s->bufs[i];
        if (b->output)
            memcpy(b->init, b->p, b->bytes);
        else if (mprotect(b->map + page, b->map_bytes - 2 * page, PROT_READ) != 0)
            return suite_fail(s, -1, "mprotect failed");
    }
    int rc = run_whole(s, c);
    for (uint32_t i = 0; !rc && i < 2; i++) rc = run_split(s, c, 2 + suite_below(s, 7));
    if (!rc) rc = run_part(s, c);
    if (!rc && c->exact) rc = check_exact(s, c);
    if (!rc && c->eval) rc = check_error(s, c);
    for (uint32_t i = 0; i < s->n_bufs; i++)
        if (s->bufs[i].output && s->bufs[i].whole) memcpy(s->bufs[i].p, s->bufs[i].whole, s->bufs[i].bytes);
    return rc;
}

int ks_kernel_suite_run(const ks_kernel *row, const ks_kernel *ref, uint64_t seed, char *why, size_t cap)
{
    suite s = { .row = row, .ref = ref, .rng = seed, .why = why, .cap = cap };
    if (cap) why[0] = 0;
    switch (row->op) {
    case KS_K_QUANT: return suite_quant(&s);
    case KS_K_MATMUL: return suite_matmul(&s);
    case KS_K_NORM: return suite_norm(&s);
    case KS_K_ROPE: return suite_rope(&s);
    case KS_K_GLU: return suite_glu(&s);
    case KS_K_ATTN: return suite_attn(&s);
    case KS_K_STORE: return suite_store(&s);
    case KS_K_MATMUL_T: return suite_matmul_t(&s);
    case KS_K_MUL: return suite_mul(&s);
    case KS_K_SCORE: return suite_score(&s);
    case KS_K_CONV: return suite_conv(&s);
    case KS_K_DELTA: return suite_delta(&s);
    default: return suite_fail(&s, -1, "op %u is unknown to this suite", row->op);
    }
}
