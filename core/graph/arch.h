/* The families: one row and one function each, one short file for those that are alike. See build.h. */
#ifndef KS_GRAPH_ARCH_H
#define KS_GRAPH_ARCH_H

#include "graph/build.h"

/*  model_type, function, well-known checkpoints */
#define KS_ARCH_MAP(X)                                                                        \
    X(afmoe, afmoe, "Trinity-Mini, Trinity-Nano")                                             \
    X(dots1, dots1, "dots.llm1")                                                              \
    X(ernie4_5_moe, ernie4_5_moe, "ERNIE-4.5-21B-A3B, ERNIE-4.5-300B-A47B")                   \
    X(exaone_moe, exaone_moe, "K-EXAONE-236B-A23B")                                           \
    X(glm4_moe, glm4_moe, "GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7")                           \
    X(gpt_oss, gpt_oss, "gpt-oss-20b, gpt-oss-120b")                                          \
    X(granitemoe, granitemoe, "Granite-3 MoE, PowerMoE-3b")                                   \
    X(hunyuan_v1_moe, hunyuan_v1_moe, "Hunyuan-A13B")                                         \
    X(lfm2_moe, lfm2_moe, "LFM2-8B-A1B")                                                      \
    X(llama4_text, llama4_text, "Llama-4-Scout, Llama-4-Maverick")                            \
    X(minimax_m2, minimax_m2, "MiniMax-M2, MiniMax-M2.1")                                     \
    X(mixtral, mixtral, "Mixtral-8x7B, Mixtral-8x22B")                                        \
    X(olmoe, olmoe, "OLMoE-1B-7B")                                                            \
    X(phimoe, phimoe, "Phi-3.5-MoE")                                                          \
    X(qwen2_moe, qwen2_moe, "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B")                              \
    X(qwen3_5_moe_text, qwen3_5_moe, "Qwen3.5-35B-A3B, Qwen3.5-122B-A10B, Qwen3.5-397B-A17B") \
    X(qwen3_moe, qwen3_moe, "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder")                    \
    X(qwen3_next, qwen3_next, "Qwen3-Next-80B-A3B, Qwen3-Coder-Next")

#define KS_ARCH_DECLARE(type, fn, models) void ks__arch_##fn(ks_build *b);
KS_ARCH_MAP(KS_ARCH_DECLARE)
#undef KS_ARCH_DECLARE

#endif
