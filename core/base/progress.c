/* Progress on stderr: a bar redrawn ten times a second on a terminal, a line every five seconds elsewhere.
 *
 * Any thread may add; the one that wins the compare-exchange on `next_ns` draws. begin and end are the
 * owner's. Two words are global: whether bars are wanted at all, and whether one is on the screen. [any]
 */
#include "base/progress.h"
#include "base/base.h"
#include "base/clock.h"
#include <inttypes.h>
#include <stdatomic.h>
#include <unistd.h>

#define SHOW_AFTER_NS UINT64_C(1000000000)
#define BAR_EVERY_NS UINT64_C(100000000)
#define LINE_EVERY_NS UINT64_C(5000000000)

struct ks_progress {
    char what[64], unit[16];
    uint64_t total, start_ns, every_ns;
    bool bytes, terminal;
    _Atomic uint64_t done, next_ns;
    atomic_bool shown; /* set by the drawer, read at the end */
};

static atomic_bool quiet_all, drawn;

void ks_progress_quiet(int quiet)
{
    atomic_store(&quiet_all, quiet != 0);
}

bool ks_progress_drawn(void)
{
    return atomic_load_explicit(&drawn, memory_order_relaxed);
}

ks_progress *ks_progress_begin(const char *what, uint64_t total, const char *unit)
{
    if (atomic_load(&quiet_all)) return NULL;
    ks_progress *p = ks_calloc(1, sizeof *p);
    if (!p) return NULL;                                 /* work goes on without a bar */
    (void)snprintf(p->what, sizeof p->what, "%s", what); /* cut off is fine: it is for people */
    (void)snprintf(p->unit, sizeof p->unit, "%s", unit);
    p->bytes = !strcmp(unit, "B");
    p->terminal = isatty(STDERR_FILENO) == 1;
    p->total = total;
    p->every_ns = p->terminal ? BAR_EVERY_NS : LINE_EVERY_NS;
    p->start_ns = ks_now_ns();
    atomic_init(&p->next_ns, p->start_ns + SHOW_AFTER_NS);
    return p;
}

static void amount(const ks_progress *p, uint64_t n, char dst[40])
{
    if (!p->bytes)
        (void)snprintf(dst, 40, "%" PRIu64, n);
    else if (p->total >= 10000000000u)
        (void)snprintf(dst, 40, "%.1f", (double)n / 1e9);
    else
        (void)snprintf(dst, 40, "%.0f", (double)n / 1e6);
}

/* As coarse as it is uncertain. */
static void rest(double seconds, char dst[32])
{
    const unsigned s = (unsigned)KS_MIN(seconds + 0.5, 1e6); /* a larger one is no estimate any more */
    if (s >= 3600)
        (void)snprintf(dst, 32, ", %u:%02u h left", s / 3600, s / 60 % 60);
    else if (s >= 60)
        (void)snprintf(dst, 32, ", %u:%02u min left", s / 60, s % 60);
    else
        (void)snprintf(dst, 32, ", %u s left", s);
}

static void draw(ks_progress *p, uint64_t now, bool last)
{
    char of[48] = "", rate[48] = "", left[32] = "", bar[32] = "", percent[16] = "", have[40], all[40];
    uint64_t done = atomic_load_explicit(&p->done, memory_order_relaxed);
    double seconds = (double)(now - p->start_ns) / 1e9, part = p->total ? (double)done / (double)p->total : 0;
    const char *unit = !p->bytes ? p->unit : p->total >= 10000000000u ? "GB" : "MB";
    amount(p, done, have);
    if (p->total) {
        amount(p, p->total, all);
        (void)snprintf(of, sizeof of, "/%s", all);
        (void)snprintf(percent, sizeof percent, " %3.0f%%", part > 1 ? 100.0 : part * 100);
    }
    if (!last && part > 0 && part < 1) rest(seconds / part * (1 - part), left);
    if (p->bytes && seconds > 0) (void)snprintf(rate, sizeof rate, ", %.2f GB/s", (double)done / 1e9 / seconds);
    if (p->terminal && p->total) {
        int full = (int)(KS_MIN(part, 1.0) * 20);
        (void)snprintf(bar, sizeof bar, " [%.*s%*s]", full, "####################", 20 - full, "");
    }
    (void)fprintf(stderr, "%s%s%s%s %s%s %s%s%s%s", p->terminal ? "\r\033[K" : "", p->what, bar, percent, have, of,
                  unit, rate, left, p->terminal && !last ? "" : "\n");
    (void)fflush(stderr); /* a bar that cannot be shown is no reason to stop */
    atomic_store(&p->shown, true);
    atomic_store(&drawn, p->terminal && !last);
}

void ks_progress_add(ks_progress *p, uint64_t n)
{
    if (!p) return;
    atomic_fetch_add_explicit(&p->done, n, memory_order_relaxed);
    uint64_t now = ks_now_ns(), next = atomic_load_explicit(&p->next_ns, memory_order_relaxed);
    /* UINT64_MAX marks "somebody draws": the winner stores the next time when it is done. */
    if (now >= next && atomic_compare_exchange_strong(&p->next_ns, &next, UINT64_MAX)) {
        draw(p, now, false);
        atomic_store(&p->next_ns, now + p->every_ns);
    }
}

void ks_progress_end(ks_progress *p)
{
    if (!p) return;
    if (atomic_load(&p->shown)) draw(p, ks_now_ns(), true);
    free(p);
}
