/* A device without a model: its KV pages hold the token ids themselves, and the next token is a hash of all ids that
 * the page table shows. A wrong page, a lost token, a neighbour's row: each changes what is generated. */
#ifndef TESTS_FAKE_DEVICE_H
#define TESTS_FAKE_DEVICE_H

#include <krasis/device.h>
#include <pthread.h>
#include <stdbool.h>

#define FAKE_VOCAB 97u

typedef struct fake {
    int32_t *page; /* (n_pages, page_tok) */
    uint32_t n_pages, page_tok, n_slots;
    uint64_t *slot; /* (n_slots): a running hash, as a recurrent state would be */
    bool recurrent;
    pthread_mutex_t mu;
    bool hold; /* steps wait while set; under mu, with cond */
    pthread_cond_t cond;
    uint64_t steps, rows, max_rows; /* under mu */
    uint64_t begun;                 /* steps, also those that are held; under mu */
    uint64_t busy_rows;             /* of the largest step in which somebody wrote; under mu */
    int fail_at;                    /* the step of this number fails; -1: none */
    bool no_memory;                 /* it cannot be bound */
} fake;

void fake_init(fake *f, bool recurrent);
void fake_fini(fake *f);
void fake_hold(fake *f, bool hold);
void fake_wait_begun(fake *f, uint64_t n); /* until n steps have begun */
extern const ks_device_iface fake_iface;
/* What a lone client must get for this prompt, greedily. */
void fake_expect(const int32_t *prompt, uint32_t n, int32_t *ret, uint32_t n_new);

#endif
