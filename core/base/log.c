/* The log: each line is one write(2) to stderr, so that lines of several threads never mix.
 *
 * The settings are the one mutable global of this layer: two words, set once at start, read with relaxed
 * atomics by every thread. [any]
 */
#include "base/log.h"
#include "base/base.h"
#include "base/progress.h"
#include <krasis/json.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

static _Atomic int log_level = KS_LOG_INFO;
static _Atomic bool log_json;

void ks_log_setup(int level, bool json)
{
    atomic_store_explicit(&log_level, level, memory_order_relaxed);
    atomic_store_explicit(&log_json, json, memory_order_relaxed);
}

int ks_log_level(void)
{
    return atomic_load_explicit(&log_level, memory_order_relaxed);
}

/* A log that cannot be written has nobody to tell. */
static void write_all(const char *p, size_t n)
{
    while (n) {
        ssize_t done = write(STDERR_FILENO, p, n);
        if (done <= 0) return;
        p += done;
        n -= (size_t)done;
    }
}

static const char *level_name(int level)
{
    static const char *const names[] = { "error", "warn", "info", "debug", "trace" };
    return level < 0 ? names[0] : level < (int)KS_COUNT(names) ? names[level] : names[KS_COUNT(names) - 1];
}

static void log_json_line(const char *level, const char *component, const char *msg, const struct timespec *t)
{
    struct tm tm;
    char day[32], when[48];
    (void)gmtime_r(&t->tv_sec, &tm);
    (void)strftime(day, sizeof day, "%Y-%m-%dT%H:%M:%S", &tm); /* fits */
    (void)snprintf(when, sizeof when, "%s.%03ldZ", day, t->tv_nsec / 1000000);
    ks_jw w;
    ks_jw_init(&w);
    ks_jw_object(&w);
    ks_jw_key(&w, "time");
    ks_jw_str(&w, when);
    ks_jw_key(&w, "level");
    ks_jw_str(&w, level);
    ks_jw_key(&w, "component");
    ks_jw_str(&w, component);
    ks_jw_key(&w, "msg");
    ks_jw_str(&w, msg);
    ks_jw_object_end(&w);
    ks_jw_bytes(&w, "\n", 1);
    if (!ks_jw_done(&w)) write_all(w.text, w.n);
    ks_jw_fini(&w);
}

void ks_log(int level, const char *component, const char *fmt, ...)
{
    if (level > ks_log_level()) return;
    char msg[2048], line[sizeof msg + 256];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(msg, sizeof msg - 4, fmt, ap);
    va_end(ap);
    if (n < 0) return;
    if ((size_t)n >= sizeof msg - 4) /* cut off between characters, and say so */
        memcpy(msg + ks_utf8_valid(msg, strlen(msg)), "...", 4);
    for (char *p = msg; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = ' ';
    struct timespec t;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    if (atomic_load_explicit(&log_json, memory_order_relaxed)) {
        log_json_line(level_name(level), component, msg, &t);
        return;
    }
    struct tm tm;
    char clock[16];
    (void)localtime_r(&t.tv_sec, &tm);
    (void)strftime(clock, sizeof clock, "%H:%M:%S", &tm); /* fits */
    n = snprintf(line, sizeof line, "%s%s.%03ld %-5s %.64s: %s\n", ks_progress_drawn() ? "\r\033[K" : "", clock,
                 t.tv_nsec / 1000000, level_name(level), component, msg);
    write_all(line, (size_t)n); /* always fits */
}
