/* Time from the system's clocks, which cannot fail for these two. [any] */
#include "base/clock.h"
#include <time.h>

uint64_t ks_now_ns(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int64_t ks_now_unix(void)
{
    return (int64_t)time(NULL);
}
