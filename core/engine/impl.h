/* What the files of the engine share: jobs, sequences, the engine itself. */
#ifndef KS_ENGINE_IMPL_H
#define KS_ENGINE_IMPL_H

#include "base/arena.h"
#include "device/hcs.h"
#include "engine/emit.h"
#include "engine/engine.h"
#include "engine/pages.h"
#include "engine/sample.h"
#include <pthread.h>
#include <stdatomic.h>

#define KS_MAX_CHOICES 16u
#define KS_MAX_STOPS 16u
#define KS_NO_SLOT UINT32_MAX
#define KS_DEFAULT_STEP 512u
#define KS_EVAL_SEQS 4u /* sequences of ks_engine_eval */

struct ks_job;

/* One answer: prompt and generated tokens. Prefill, decode and recomputation after a preemption are the
 * same thing: tokens [n_done, n_tok) still have to go through the model; when the last one has, the next is sampled. */
typedef struct ks_answer {
    struct ks_job *job;
    struct ks_answer *next; /* in the waiting list */
    uint32_t choice;
    int32_t *tok; /* (cap) prompt and generated */
    uint32_t n_tok, cap, n_prompt;
    uint32_t n_done;           /* tokens whose keys and values lie in the pages */
    uint32_t n_echoed;         /* prompt tokens whose log-probabilities went out */
    uint32_t n_pages, n_keyed; /* pages held; of these, published */
    uint32_t *pages;
    ks_hash128 key; /* of the last published page */
    uint32_t slot;
    uint64_t order; /* of admission: the youngest is preempted first */
    bool started, ended, waiting;
    uint32_t row, n_rows, out, n_out; /* its share of the current step */
    struct ks_snapshot *snap;         /* that this step fills, or NULL */
    int32_t pick;                     /* the token after it, if it holds the last one; by pick.c */
    float pick_lp;                    /* its log-probability, and the best ones, if wanted */
    ks_cand pick_top[KS_TOP_MAX];
    ks_sampler sampler;
    ks_emit emit;
} ks_answer;

typedef struct ks_job {
    struct ks_job *next;     /* in prep or ready queue */
    struct ks_job *reg_next; /* in the registry; under mu */
    uint64_t id;
    ks_arena arena; /* the request's copy */
    ks_request rq;
    ks_sink sink;
    ks_sampling sampling; /* resolved */
    const char **stop;
    int32_t *prompt;
    uint32_t n_prompt, max_new;
    atomic_bool cancel; /* set by any thread, read by the engine between steps */
    uint32_t n_left;    /* answers that have not ended */
    ks_usage usage;
    uint64_t t_submit, t_admit, t_first;
    ks_err err; /* code 0: none */
    ks_answer answers[KS_MAX_CHOICES];
} ks_job;

/* A copy of the recurrent state at the end of a published page. */
typedef struct ks_snapshot {
    ks_hash128 key;
    uint64_t used; /* 0: empty */
    uint32_t slot;
} ks_snapshot;
#define KS_SNAP_FILLING UINT64_MAX /* by the current step */

/* Which experts stay on the device. Under step_mu. */
typedef struct ks_hot {
    ks_hcs *hcs;        /* NULL: there is nothing to choose, or the device chooses */
    uint64_t *counts;   /* (n_layers, n_experts) as the device counts them */
    uint64_t rows;      /* that went through the device */
    uint64_t counted;   /* of them, when the counts were last looked at */
    uint32_t n_steps;   /* since then */
    uint32_t n_experts; /* that could stay */
    uint32_t dearest;   /* places that one expert takes at most */
    bool adapt;
    double link, slot_bytes, saved; /* bytes a second; bytes; bytes that may be uploaded */
    uint64_t last_ns, t_tell;
    ks_device_stats told; /* by the last line in the log */
} ks_hot;

struct ks_engine {
    ks_engine_opts o;
    ks_graph const *g;
    void *dev;
    uint32_t n_ctx, max_running, max_waiting, step_tokens, n_pages;
    bool recurrent;
    ks_sampling defaults; /* generation_config.json */
    int32_t *eos;
    uint32_t n_eos;
    char *name, *path;
    int64_t created;
    uint64_t t_open;

    pthread_t engine_thread, prep_thread;
    pthread_mutex_t mu;
    pthread_cond_t wake_engine, wake_prep, idle;
    ks_job *prep_first, *prep_last, *ready_first, *ready_last, *registry; /* under mu */
    uint64_t next_id;                                                     /* under mu */
    uint32_t n_jobs;                                                      /* under mu */
    bool quit, draining;                                                  /* under mu */
    ks_err lost;                                                          /* under mu; code 0: the device works */
    ks_stats stats;                                                       /* under mu */

    pthread_mutex_t step_mu; /* held for each step, and by eval */
    /* the engine thread's own from here on */
    ks_pages pages;
    uint32_t *free_slots, n_free_slots;
    ks_snapshot *snaps;
    uint32_t n_snaps;
    ks_answer *wait_first, *wait_last;
    ks_answer **running;
    uint32_t n_running;
    uint64_t admissions;
    /* one step's batch */
    int32_t *ids;
    uint32_t *pos, *out_rows;
    ks_seq *seqs;
    ks_answer **picking; /* (max_running) those that get a token */
    float *logits;
    float *row_logits; /* (threads, n_vocab) logits with penalties */
    ks_cand *cand;     /* (threads, n_vocab) */
    uint32_t max_out;
    ks_hot hot;
    /* eval */
    struct {
        uint32_t *pages, n_pages, slot;
    } eval[KS_EVAL_SEQS];
};

/* prep.c: copies and checks a request [any]; renders and tokenizes it [prep thread] */
KS_MUST_CHECK int ks__job_new(ks_engine *e, const ks_request *rq, const ks_sink *s, ks_job **ret, ks_err *err);
KS_MUST_CHECK int ks__job_prepare(ks_engine *e, ks_job *j, ks_err *err);
void ks__job_free(ks_job *j);
KS_MUST_CHECK int ks__generation_defaults(ks_engine *e, const char *json, ks_err *err);
/* pick.c: samples for all answers of the step that may go on */
void ks__pick_all(ks_engine *e);
/* step.c: admits, composes, runs and samples; false: nothing to do. [engine thread] */
bool ks__step(ks_engine *e);
void ks__job_end(ks_engine *e, ks_job *j, int32_t finish, const ks_err *err); /* all its answers */
void ks__answer_end(ks_engine *e, ks_answer *a, int32_t finish, const ks_err *err);
void ks__answer_release(ks_engine *e, ks_answer *a);
/* hot.c */
bool ks__hot_wanted(const ks_engine *e); /* the engine chooses the experts that stay */
KS_MUST_CHECK int ks__hot_open(ks_engine *e, ks_err *err);
void ks__hot_close(ks_engine *e);
void ks__hot_rows(ks_engine *e, uint32_t n_rows);
void ks__hot_after(ks_engine *e, uint32_t n_rows, uint64_t ns); /* a step that took so long */
void ks__hot_stats(ks_engine *e, ks_stats *ret);                /* [any] */
void ks__hot_tell(ks_engine *e);                                /* one line in the log */
/* lost.c */
void ks__device_lost(ks_engine *e, const ks_err *why);
/* engine.c: opens and binds */
KS_MUST_CHECK int ks__device_open(ks_engine *e, ks_err *err);
/* engine.c: the last word to the sink; forgets and frees the job. */
void ks__job_done(ks_engine *e, ks_job *j);
void ks__wait_append(ks_engine *e, ks_answer *a);

#endif
