/* Time. [any] */
#ifndef KS_BASE_CLOCK_H
#define KS_BASE_CLOCK_H

#include <stdint.h>

uint64_t ks_now_ns(void); /* monotonic */
int64_t ks_now_unix(void);

#endif
