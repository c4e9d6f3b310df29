/* Builds a model's op list: the words that architecture files are written in.
 *
 * Every function keeps the first error in the builder (b->cfg.rc) and goes on with harmless values, so an
 * architecture file reads as a description; ks_model_open looks at the error once. All memory is the model's
 * arena. [main] */
#ifndef KS_GRAPH_BUILD_H
#define KS_GRAPH_BUILD_H

#include "graph/cfg.h"
#include "graph/model.h"

#define KS_NO_LAYER 0xffffu
#define KS_LAYERS_MAX 1024u
#define KS_DIM_MAX (1u << 20) /* any width of the hidden state or a projection */
#define KS_HEADS_MAX 1024u
#define KS_EXPERTS_MAX 4096u  /* also bounds k */
#define KS_CTX_MAX (1u << 26) /* positions: exact in float up to 2^24, and the KV cache's limit comes long before */

/* Looks a tensor up; NULL: there is none. */
typedef const ks_tensor *(*ks_find_fn)(const void *ctx, const char *name);

typedef struct ks_build {
    ks_arena *arena;
    ks_find_fn find; /* in the checkpoint */
    const void *find_ctx;
    ks_cfg cfg;
    const char *prefix, *head; /* "model.", "lm_head.weight": as the checkpoint has them */
    uint32_t layer;            /* the one being built, KS_NO_LAYER outside */
    /* What every family has, read by ks__common. */
    uint32_t d, n_layers, n_vocab, n_ctx, n_heads, n_kv_heads, head_dim, act;
    float eps; /* set before ks__common: the family's default */
    bool tied;
    /* What has been built. */
    ks_op *ops;
    ks_reg *regs;
    const char **reg_names;
    ks_wspec *specs;
    ks_state *states;
    uint32_t n_ops, n_regs, n_specs, n_states;
    uint32_t n_experts, n_taps;
    int32_t logits;
    ks_op spare; /* written to after a failure */
} ks_build;

/* The model that a config.json describes, for a checkpoint with these tensors. What ks_model_open does but for reading
 * the file; tests and the fuzzer call it with tensors of their own. */
KS_MUST_CHECK int ks__model_build(const char *text, size_t n, ks_find_fn find, const void *ctx, ks_model *ret,
                                  ks_err *err);

typedef void (*ks_arch_fn)(ks_build *b);
typedef struct ks_arch {
    const char *type; /* model_type of the text part */
    ks_arch_fn build;
    const char *models, *mixer, *ffn; /* for docs/models.md: well-known checkpoints, what is special */
} ks_arch;

/* Text in the arena; "" after a failure. */
KS_PRINTF(2, 3) const char *ks__printf(ks_build *b, const char *fmt, ...);

/* ---- registers: made at first use, found again by name and width */
int16_t ks__reg(ks_build *b, const char *name, uint32_t width);
int16_t ks__reg_out(ks_build *b, const char *name, uint32_t width); /* indexed by logit row */
int16_t ks__reg_kind(ks_build *b, const char *name, uint32_t kind, uint32_t width);
int16_t ks__view(ks_build *b, const char *name, int16_t base, uint32_t col, uint32_t width);

/* ---- weights. `tensor` is the checkpoint's name below the prefix, and below "layers.N." inside a layer; the
 * returned index is what ops name. */
const char *ks__tensor(ks_build *b, const char *tensor); /* the full name */
bool ks__has(ks_build *b, const char *tensor);           /* in the checkpoint, in a plain or a pre-quantized form */
bool ks__has_full(const ks_build *b, const char *full);
int32_t ks__weight(ks_build *b, const char *name, ks_wspec spec, const ks_wpart *parts, uint32_t n_parts);
int32_t ks__vector(ks_build *b, uint32_t cls, const char *tensor, uint32_t n);
int32_t ks__values(ks_build *b, const char *name, const float *v, uint32_t n);
int32_t ks__matrix(ks_build *b, uint32_t cls, uint32_t flags, const char *tensor, uint32_t n_out, uint32_t n_in);
ks_wpart ks__rows(ks_build *b, const char *tensor, uint32_t first, uint32_t count);

/* ---- ops: appended, zeroed but for kind, layer and "none" everywhere; the pointer is good until the next */
ks_op *ks__op(ks_build *b, uint32_t kind);
uint32_t ks__state(ks_build *b, ks_state s);

typedef struct ks_norm {
    uint32_t kind; /* KS_NORM_; 0: RMS */
    float offset;  /* 1: the weight is stored as w - 1 */
    bool bias;
    float eps; /* 0: the model's */
} ks_norm;
/* tensor without ".weight"; NULL: no weight. width: of one slice; the weight has w_width numbers. */
void ks__norm(ks_build *b, const ks_norm *n, int16_t x, int16_t y, const char *tensor, uint32_t width,
              uint32_t w_width);
/* tensor without ".weight". */
void ks__linear(ks_build *b, uint32_t cls, uint32_t flags, int16_t x, int16_t y, const char *tensor, bool bias);
ks_op *ks__linear_w(ks_build *b, uint32_t cls, int16_t x, int16_t y, int32_t matrix, int32_t bias);
void ks__add(ks_build *b, int16_t x, int16_t y, int16_t z, float fx, float fy); /* z = fx x + fy y */
void ks__mul(ks_build *b, int16_t x, int16_t y, int16_t z, uint32_t act, uint32_t per_head);
/* Causal, one filter a channel, over the sequence; tensor without ".weight". */
void ks__conv(ks_build *b, int16_t x, int16_t y, const char *tensor, uint32_t width, uint32_t act, bool bias);
void ks__tap(ks_build *b, int16_t x, uint32_t index);

/* ---- what most families share (common.c) */
void ks__common(ks_build *b);                /* reads the fields named in ks_build */
int16_t ks__embed(ks_build *b, float scale); /* returns the residual register; tap 0 */
void ks__head(ks_build *b, const ks_norm *n, const char *norm, int16_t x, float scale, float softcap, bool bias);
uint32_t ks__act(ks_build *b, const char *field, const char *dflt); /* KS_ACT_ of a hidden_act */
/* layer_types and the like: n names per layer; returns the index of each in `names` (NULL-terminated). NULL: absent. */
const uint8_t *ks__layer_kinds(ks_build *b, const char *field, const char *const *names);

/* num_local_experts, n_routed_experts or num_experts; 0: none. */
uint32_t ks__cfg_experts(ks_build *b);
/* n shared experts are one MLP of that many widths. */
uint32_t ks__wide(ks_build *b, uint32_t n, uint32_t n_ff);
/* mlp_only_layers and decoder_sparse_step: has this layer experts? */
bool ks__sparse_layer(ks_build *b, uint32_t n_experts);

/* ---- rotary tables (rope.c) */
typedef struct ks_rope {
    uint32_t kind, rot_dim, rot_begin; /* KS_ROPE_ */
    float mscale;                      /* of cos and sin */
    float attn_factor;                 /* deepseek: mscale_all_dim's, to be squared into the softmax scale; else 1 */
    int32_t inv_freq;                  /* weight */
} ks_rope;
/* Reads rope_parameters, or rope_theta with rope_scaling. dim: of the rotated part before partial_rotary_factor. */
ks_rope ks__rope_read(ks_build *b, uint32_t dim, double theta, double partial);
void ks__rope(ks_build *b, const ks_rope *r, int16_t x, uint32_t n_heads, uint32_t head_dim);

/* ---- layers (common.c): what all have in common, with two holes. The holes get the normed input and return a register
 * of width d, which is added to the residual. */
typedef int16_t (*ks_hole_fn)(ks_build *b, void *ctx, int16_t h);
typedef struct ks_stack {
    ks_norm norm;
    const char *norm_mixer, *norm_ffn, *norm_last; /* NULL: input_layernorm, post_attention_layernorm, norm */
    const char *after_mixer, *after_ffn;           /* norms of the holes' results; NULL: none */
    float embed_scale, residual, logit_scale;      /* 0: 1 */
    bool head_bias;
    ks_hole_fn mixer, ffn;
    void *ctx;
} ks_stack;
void ks__stack(ks_build *b, const ks_stack *s);

/* ---- attention over a KV cache (gqa.c) */
typedef struct ks_gqa {
    const char *q, *k, *v, *o;   /* tensors without ".weight"; NULL: self_attn.q_proj ... */
    const char *q_norm, *k_norm; /* NULL: none */
    ks_norm norm;
    bool norm_whole;                  /* the norm spans all heads */
    bool norm_after_rope, norm_plain; /* plain: no weight, q_norm and k_norm are not read */
    float clip;                       /* of q, k, v after their norms; 0: none */
    bool bias_qkv, bias_o;
    bool gated;       /* q_proj has a gate beside each head: o *= sigmoid(gate) */
    const char *gate; /* a projection of its own for the gate */
    bool sinks;
    uint32_t window, chunk;
    float scale;                  /* 0: head_dim ^ -1/2 */
    float temp_scale, temp_floor; /* QSCALE, where temp_floor is not 0 */
} ks_gqa;
/* x: normed input; returns the register that holds o_proj's output. rope NULL: none. */
int16_t ks__gqa(ks_build *b, const ks_gqa *a, const ks_rope *rope, int16_t x);

/* ---- feed-forward (moe.c) */
typedef struct ks_mlp {
    const char *gate, *up, *down; /* tensors without ".weight", relative to the block's name; NULL: gate_proj ... */
    uint32_t n_ff, act;
    float limit, alpha;
    bool bias; /* of all three; MLP only */
} ks_mlp;
/* block: "mlp", "mlp.shared_expert". cls: KS_CLS_DENSE or SHARED. */
int16_t ks__mlp(ks_build *b, uint32_t cls, const char *block, const ks_mlp *m, int16_t x);
/* sum += mlp(h), nothing where n_ff is 0; and sum += sigmoid(block_gate . h) * mlp(h). */
void ks__shared(ks_build *b, const char *block, const ks_mlp *m, int16_t h, int16_t sum);
void ks__shared_gated(ks_build *b, const char *block, const ks_mlp *m, int16_t h, int16_t sum);

typedef struct ks_moe {
    const char *block;      /* "mlp" */
    const char *router;     /* "gate": block.router.weight, or a full name where it starts with '.' */
    const char *correction; /* tensor of the selection bias, relative to the layer; NULL: none */
    bool router_bias;
    const char *experts; /* "experts" */
    ks_mlp e;            /* one expert */
    uint32_t n_experts, k, score, flags, n_group, topk_group;
    float scale, norm_eps, jitter;
    bool weigh_input;
    bool fused_transposed;          /* a stacked tensor is (experts, in, out) where its shape does not tell */
    bool fused_interleaved;         /* gate and up rows alternate */
    const char *fused, *fused_down; /* names of stacked tensors; NULL: experts.gate_up_proj, experts.down_proj */
    bool biases;                    /* gate_up_proj_bias, down_proj_bias */
} ks_moe;
int16_t ks__moe(ks_build *b, const ks_moe *m, int16_t x); /* the register of the routed sum */

#endif
