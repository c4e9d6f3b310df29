/* Progress of work over a second: a bar on a terminal, a line every few seconds elsewhere, on stderr.
 * Thread-safe to advance; one bar at a time. */
#ifndef KS_BASE_PROGRESS_H
#define KS_BASE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct ks_progress ks_progress;

/* unit "B" prints bytes as MB, GB and a rate; any other unit is printed as it is. Shows itself only
 * once a second has passed. quiet: never. NULL on failure is fine to pass on. */
ks_progress *ks_progress_begin(const char *what, uint64_t total, const char *unit);
void ks_progress_add(ks_progress *p, uint64_t n);
void ks_progress_end(ks_progress *p);
void ks_progress_quiet(int quiet);
/* True while a bar stands on the terminal's last line; the log erases it before its own line. */
bool ks_progress_drawn(void);

#endif
