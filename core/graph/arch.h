/* The families: one row and one function each, one short file for those that are alike. See build.h. */
#ifndef KS_GRAPH_ARCH_H
#define KS_GRAPH_ARCH_H

#include "graph/build.h"

/*  model_type, function, well-known checkpoints, attention, feed-forward */
/* clang-format off */
#define KS_ARCH_MAP(X) \
    X(afmoe, afmoe, "Trinity-Mini, Trinity-Nano",\
      "GQA, gate, q/k norms, sliding window, NoPE", "sigmoid + bias, shared") \
    X(deepseek_v2, deepseek_v2, "DeepSeek-V2, DeepSeek-V2-Lite, DeepSeek-Coder-V2",\
      "MLA, YaRN", "softmax, groups, shared") \
    X(deepseek_v3, deepseek_v3, "DeepSeek-V3, DeepSeek-R1, DeepSeek-V3.1",\
      "MLA, YaRN", "sigmoid + bias, groups, shared") \
    X(deepseek_v32, deepseek_v32, "DeepSeek-V3.2",\
      "MLA, sparse indexer", "sigmoid + bias, groups, shared") \
    X(dots1, dots1, "dots.llm1",\
      "GQA, q/k norms, sliding window", "sigmoid + bias, groups, shared") \
    X(ernie4_5_moe, ernie4_5_moe, "ERNIE-4.5-21B-A3B, ERNIE-4.5-300B-A47B",\
      "GQA, interleaved rotation", "softmax + bias, shared") \
    X(exaone_moe, exaone_moe, "K-EXAONE-236B-A23B",\
      "GQA, q/k norms, sliding window, NoPE", "sigmoid + bias, groups, shared") \
    X(glm4_moe, glm4_moe, "GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7",\
      "GQA, q/k norms, partial rotation", "sigmoid + bias, groups, shared") \
    X(glm4_moe_lite, glm4_moe_lite, "GLM-4.7-Flash",\
      "MLA", "sigmoid + bias, groups, shared") \
    X(glm_moe_dsa, glm_moe_dsa, "GLM-5",\
      "MLA, sparse indexer shared by layers", "sigmoid + bias, groups, shared") \
    X(gpt_oss, gpt_oss, "gpt-oss-20b, gpt-oss-120b",\
      "GQA, sinks, sliding window, YaRN", "softmax of the chosen, biases, clamped SwiGLU") \
    X(granitemoe, granitemoe, "Granite-3 MoE, PowerMoE-3b",\
      "GQA, multipliers", "softmax of the chosen") \
    X(hunyuan_v1_moe, hunyuan_v1_moe, "Hunyuan-A13B",\
      "GQA, q/k norms after rotation", "softmax, shared") \
    X(kimi_k2, deepseek_v3, "Kimi-K2",\
      "MLA, YaRN", "sigmoid + bias, groups, shared") \
    X(lfm2_moe, lfm2_moe, "LFM2-8B-A1B",\
      "short convolution; GQA, q/k norms", "sigmoid + bias") \
    X(llama4_text, llama4_text, "Llama-4-Scout, Llama-4-Maverick",\
      "GQA, chunks, NoPE, temperature", "sigmoid, weighed input, shared") \
    X(minimax_m2, minimax_m2, "MiniMax-M2, MiniMax-M2.1",\
      "GQA, whole q/k norms, partial rotation", "sigmoid + bias") \
    X(mixtral, mixtral, "Mixtral-8x7B, Mixtral-8x22B",\
      "GQA, sliding window", "softmax") \
    X(olmoe, olmoe, "OLMoE-1B-7B",\
      "GQA, whole q/k norms, clamp", "softmax") \
    X(phimoe, phimoe, "Phi-3.5-MoE",\
      "GQA, LayerNorm, longrope", "sparse mixer") \
    X(qwen2_moe, qwen2_moe, "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",\
      "GQA, biases, sliding window", "softmax, gated shared") \
    X(qwen3_5_moe_text, qwen3_5_moe, "Qwen3.5-35B-A3B, Qwen3.5-122B-A10B, Qwen3.5-397B-A17B",\
      "gated delta rule; GQA, gate, partial rotation", "softmax, gated shared") \
    X(qwen3_moe, qwen3_moe, "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",\
      "GQA, q/k norms", "softmax") \
    X(qwen3_next, qwen3_next, "Qwen3-Next-80B-A3B, Qwen3-Coder-Next",\
      "gated delta rule; GQA, gate, partial rotation", "softmax, gated shared") \
    X(qwen3_vl_moe_text, qwen3_moe, "Qwen3-VL-30B-A3B, Qwen3-VL-235B-A22B (text)",\
      "GQA, q/k norms", "softmax")
/* clang-format on */

void ks__arch_afmoe(ks_build *b);
void ks__arch_deepseek_v2(ks_build *b);
void ks__arch_deepseek_v3(ks_build *b);
void ks__arch_deepseek_v32(ks_build *b);
void ks__arch_dots1(ks_build *b);
void ks__arch_ernie4_5_moe(ks_build *b);
void ks__arch_exaone_moe(ks_build *b);
void ks__arch_glm4_moe(ks_build *b);
void ks__arch_glm4_moe_lite(ks_build *b);
void ks__arch_glm_moe_dsa(ks_build *b);
void ks__arch_gpt_oss(ks_build *b);
void ks__arch_granitemoe(ks_build *b);
void ks__arch_hunyuan_v1_moe(ks_build *b);
void ks__arch_lfm2_moe(ks_build *b);
void ks__arch_llama4_text(ks_build *b);
void ks__arch_minimax_m2(ks_build *b);
void ks__arch_mixtral(ks_build *b);
void ks__arch_olmoe(ks_build *b);
void ks__arch_phimoe(ks_build *b);
void ks__arch_qwen2_moe(ks_build *b);
void ks__arch_qwen3_5_moe(ks_build *b);
void ks__arch_qwen3_moe(ks_build *b);
void ks__arch_qwen3_next(ks_build *b);

#endif
