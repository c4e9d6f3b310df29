/* HCS, "hot cached static": which experts stay in a device's memory. The policy alone: counts in, changes out; no
 * device, no clock, no threads. Equal counts give equal decisions.
 *
 * Each (layer, expert) has two estimates of how often a row asks for it, exponentially decayed frequencies with a long
 * and a short half-life; its score is a mixture of the two. So what is always asked for stays, and what a conversation
 * asks for just now comes. An expert takes the place of a colder one only if it is hotter by a factor and by a margin
 * (hysteresis), so that near-equal ones do not swap for ever, and only as many as the caller pays for.
 *
 * Nothing allocates after new. One thread at a time. */
#ifndef KS_DEVICE_HCS_H
#define KS_DEVICE_HCS_H

#include <krasis/device.h>
#include <stdbool.h>

/* How the numbers were found is in docs/cuda.md, "Which experts stay". */
#define KS_HCS_SLOW_ROWS 4096u /* half-lives, in rows */
#define KS_HCS_FAST_ROWS 128u
#define KS_HCS_FAST_PART 0.5f      /* of the score */
#define KS_HCS_FACTOR 1.25f        /* hotter than who goes by this factor ... */
#define KS_HCS_MARGIN (1 / 1024.f) /* ... and by so many uses a row: an upload pays for itself within 1024 rows */
#define KS_HCS_STEP_ROWS 256u      /* one count weighs at most as much as so many rows: prompts do not drown answers */
#define KS_HCS_ONE 1024u           /* a heat map's fraction: this is one use */

typedef struct ks_hcs ks_hcs;

typedef struct ks_hcs_opts {
    uint32_t n_layers, n_experts;  /* of the counts: (n_layers, n_experts) */
    const uint32_t *layer_experts; /* (n_layers) of each; the counts beyond are ignored. NULL: n_experts */
    const uint32_t *layer_slots;   /* (n_layers) slots that one expert takes, one a bank; 0: not kept. NULL: 1 */
    uint32_t capacity;             /* slots */
} ks_hcs_opts;

KS_MUST_CHECK int ks_hcs_new(const ks_hcs_opts *o, ks_hcs **ret, ks_err *err);
void ks_hcs_free(ks_hcs *h); /* NULL is fine */

/* What is known so far: counts (n_layers, n_experts) of `rows` rows, both in the same unit, for example of a file in
 * units of 1/KS_HCS_ONE. Replaces all that was counted. rows 0: nothing is known. */
void ks_hcs_seed(ks_hcs *h, const uint64_t *counts, uint64_t rows);
/* The reverse: decayed counts and rows, in units of 1/KS_HCS_ONE. */
void ks_hcs_heat(const ks_hcs *h, uint64_t *ret_counts, uint64_t *ret_rows);

/* The best set at once, for a start: returns the changes that lead to it, drops before loads, all applied. They are
 * valid until the next call. Equal scores: equally many of each layer, lowest expert first. */
const ks_place *ks_hcs_settle(ks_hcs *h, uint32_t *ret_n);

/* Counts from now on are those beyond these. */
void ks_hcs_base(ks_hcs *h, const uint64_t *counts, uint64_t rows);
/* New cumulative counts and rows since the device was bound. Counts that go backwards or grow by more than one use a
 * row (and bank) are taken for as much. Chooses what ks_hcs_next gives out. O(experts). */
void ks_hcs_count(ks_hcs *h, const uint64_t *counts, uint64_t rows);
/* The next changes, at most `cap` of them with loads of at most `slots` slots: a load comes after the drops that make
 * room for it. They count as done. */
uint32_t ks_hcs_next(ks_hcs *h, uint32_t slots, ks_place *ret, uint32_t cap);

uint32_t ks_hcs_used(const ks_hcs *h); /* slots taken, at most the capacity */
bool ks_hcs_is_resident(const ks_hcs *h, uint32_t layer, uint32_t expert);
/* All that can be kept is: there is nothing to choose. */
bool ks_hcs_holds_all(const ks_hcs *h);

#endif
