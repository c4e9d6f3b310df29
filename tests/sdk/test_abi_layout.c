/* The layout of the SDK's structs as version 1.0 has it: what a plugin was compiled with must stay where it is. A new
 * field is a new line here and in ABI-CHANGES.md; a line that changes breaks every plugin there is. The structs of
 * device.h and graph.h join when the first device plugin is released. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <krasis/frontend.h>
#include <krasis/kernels.h>
#include <krasis/loader.h>

/* clang-format off */
#define F(STRUCT, NAME, AT) { #STRUCT "." #NAME, offsetof(STRUCT, NAME), AT }
#define S(STRUCT, BYTES, FROZEN) { #STRUCT, sizeof(STRUCT), BYTES, FROZEN }

static const struct {
    const char *name;
    size_t is, was;
} fields[] = {
    F(ks_err, code, 0), F(ks_err, msg, 4),
    F(ks_option, key, 0), F(ks_option, type, 8), F(ks_option, offset, 12), F(ks_option, dflt, 16),
    F(ks_option, min, 24), F(ks_option, max, 32), F(ks_option, choices, 40), F(ks_option, help, 48),
    F(ks_host, size, 0), F(ks_host, abi_minor, 4), F(ks_host, ctx, 8), F(ks_host, cpu, 16), F(ks_host, n_threads, 24),
    F(ks_host, _pad, 28), F(ks_host, log, 32), F(ks_host, alloc, 40), F(ks_host, free, 48), F(ks_host, parallel, 56),
    F(ks_host, ext, 64),
    F(ks_probe, size, 0), F(ks_probe, score, 4), F(ks_probe, mem_total_bytes, 8), F(ks_probe, mem_free_bytes, 16),
    F(ks_probe, detail, 24),
    F(ks_plugin, size, 0), F(ks_plugin, kind, 4), F(ks_plugin, name, 8), F(ks_plugin, version, 16),
    F(ks_plugin, summary, 24), F(ks_plugin, license, 32), F(ks_plugin, url, 40), F(ks_plugin, cpu_required, 48),
    F(ks_plugin, score, 56), F(ks_plugin, n_options, 60), F(ks_plugin, options, 64), F(ks_plugin, option_size, 72),
    F(ks_plugin, opts_bytes, 76), F(ks_plugin, iface, 80), F(ks_plugin, probe, 88), F(ks_plugin, open, 96),
    F(ks_plugin, close, 104), F(ks_plugin, ext, 112),
    F(ks_act, q, 0), F(ks_act, scale, 8), F(ks_act, sum, 16), F(ks_act, q_stride, 24), F(ks_act, scale_stride, 28),
    F(ks_act, sum_stride, 32), F(ks_act, _pad, 36),
    F(ks_quant_args, size, 0), F(ks_quant_args, n_rows, 4), F(ks_quant_args, n_in, 8), F(ks_quant_args, _pad, 12),
    F(ks_quant_args, x, 16), F(ks_quant_args, x_stride, 24), F(ks_quant_args, out, 32),
    F(ks_matmul_args, size, 0), F(ks_matmul_args, n_rows, 4), F(ks_matmul_args, n_in, 8),
    F(ks_matmul_args, n_out, 12), F(ks_matmul_args, group, 16), F(ks_matmul_args, _pad, 20), F(ks_matmul_args, w, 24),
    F(ks_matmul_args, strip_bytes, 32), F(ks_matmul_args, act, 40), F(ks_matmul_args, x, 48),
    F(ks_matmul_args, x_stride, 56), F(ks_matmul_args, rows, 64), F(ks_matmul_args, y, 72),
    F(ks_matmul_args, y_stride, 80), F(ks_matmul_args, bias, 88),
    F(ks_norm_args, size, 0), F(ks_norm_args, kind, 4), F(ks_norm_args, n_rows, 8), F(ks_norm_args, n, 12),
    F(ks_norm_args, width, 16), F(ks_norm_args, w_width, 20), F(ks_norm_args, eps, 24), F(ks_norm_args, w_offset, 28),
    F(ks_norm_args, x, 32), F(ks_norm_args, x_stride, 40), F(ks_norm_args, weight, 48), F(ks_norm_args, bias, 56),
    F(ks_norm_args, y, 64), F(ks_norm_args, y_stride, 72),
    F(ks_rope_args, size, 0), F(ks_rope_args, kind, 4), F(ks_rope_args, n_rows, 8), F(ks_rope_args, n_heads, 12),
    F(ks_rope_args, head_dim, 16), F(ks_rope_args, rot_dim, 20), F(ks_rope_args, rot_begin, 24),
    F(ks_rope_args, mscale, 28), F(ks_rope_args, inv_freq, 32), F(ks_rope_args, pos, 40), F(ks_rope_args, x, 48),
    F(ks_rope_args, x_stride, 56),
    F(ks_glu_args, size, 0), F(ks_glu_args, kind, 4), F(ks_glu_args, n_rows, 8), F(ks_glu_args, n, 12),
    F(ks_glu_args, limit, 16), F(ks_glu_args, alpha, 20), F(ks_glu_args, x, 24), F(ks_glu_args, x_stride, 32),
    F(ks_glu_args, y, 40), F(ks_glu_args, y_stride, 48),
    F(ks_attn_args, size, 0), F(ks_attn_args, n_rows, 4), F(ks_attn_args, n_heads, 8),
    F(ks_attn_args, n_kv_heads, 12), F(ks_attn_args, d_k, 16), F(ks_attn_args, d_v, 20),
    F(ks_attn_args, page_tok, 24), F(ks_attn_args, pos, 28), F(ks_attn_args, window, 32), F(ks_attn_args, chunk, 36),
    F(ks_attn_args, scale, 40), F(ks_attn_args, softcap, 44), F(ks_attn_args, q, 48), F(ks_attn_args, q_stride, 56),
    F(ks_attn_args, o, 64), F(ks_attn_args, o_stride, 72), F(ks_attn_args, pages, 80), F(ks_attn_args, k, 88),
    F(ks_attn_args, v, 96), F(ks_attn_args, k_page_bytes, 104), F(ks_attn_args, v_page_bytes, 112),
    F(ks_attn_args, k_stride, 120), F(ks_attn_args, v_stride, 124), F(ks_attn_args, sinks, 128),
    F(ks_attn_args, sel, 136), F(ks_attn_args, n_sel, 144), F(ks_attn_args, sel_stride, 152),
    F(ks_attn_args, _pad, 156), F(ks_attn_args, part, 160), F(ks_attn_args, part_first, 168),
    F(ks_attn_args, part_spans, 172), F(ks_attn_args, part_stride, 176), F(ks_attn_args, span_begin, 180),
    F(ks_attn_args, span_end, 184), F(ks_attn_args, part_merge, 188),
    F(ks_store_args, size, 0), F(ks_store_args, n_rows, 4), F(ks_store_args, n, 8), F(ks_store_args, pos, 12),
    F(ks_store_args, page_tok, 16), F(ks_store_args, y_stride, 20), F(ks_store_args, col, 24),
    F(ks_store_args, _pad, 28), F(ks_store_args, x, 32), F(ks_store_args, x_stride, 40), F(ks_store_args, pages, 48),
    F(ks_store_args, y, 56), F(ks_store_args, page_bytes, 64),
    F(ks_mul_args, size, 0), F(ks_mul_args, act, 4), F(ks_mul_args, n_rows, 8), F(ks_mul_args, n, 12),
    F(ks_mul_args, n_y, 16), F(ks_mul_args, _pad, 20), F(ks_mul_args, x, 24), F(ks_mul_args, y, 32),
    F(ks_mul_args, x_stride, 40), F(ks_mul_args, y_stride, 48), F(ks_mul_args, z, 56), F(ks_mul_args, z_stride, 64),
    F(ks_conv_args, size, 0), F(ks_conv_args, n_rows, 4), F(ks_conv_args, n, 8), F(ks_conv_args, width, 12),
    F(ks_conv_args, pos, 16), F(ks_conv_args, act, 20), F(ks_conv_args, x, 24), F(ks_conv_args, x_stride, 32),
    F(ks_conv_args, weight, 40), F(ks_conv_args, bias, 48), F(ks_conv_args, state, 56), F(ks_conv_args, y, 64),
    F(ks_conv_args, y_stride, 72),
    F(ks_delta_args, size, 0), F(ks_delta_args, n_rows, 4), F(ks_delta_args, n_k_heads, 8),
    F(ks_delta_args, n_v_heads, 12), F(ks_delta_args, d_k, 16), F(ks_delta_args, d_v, 20), F(ks_delta_args, pos, 24),
    F(ks_delta_args, scale, 28), F(ks_delta_args, q, 32), F(ks_delta_args, k, 40), F(ks_delta_args, v, 48),
    F(ks_delta_args, b, 56), F(ks_delta_args, a, 64), F(ks_delta_args, q_stride, 72), F(ks_delta_args, k_stride, 80),
    F(ks_delta_args, v_stride, 88), F(ks_delta_args, b_stride, 96), F(ks_delta_args, a_stride, 104),
    F(ks_delta_args, neg_a, 112), F(ks_delta_args, dt, 120), F(ks_delta_args, state, 128), F(ks_delta_args, o, 136),
    F(ks_delta_args, o_stride, 144),
    F(ks_score_args, size, 0), F(ks_score_args, kind, 4), F(ks_score_args, n_rows, 8), F(ks_score_args, n, 12),
    F(ks_score_args, x, 16), F(ks_score_args, x_stride, 24), F(ks_score_args, y, 32), F(ks_score_args, y_stride, 40),
    F(ks_kernel, op, 0), F(ks_kernel, wtype, 2), F(ks_kernel, xtype, 4), F(ks_kernel, layout, 6),
    F(ks_kernel, score, 8), F(ks_kernel, scratch_bytes, 12), F(ks_kernel, cpu_required, 16), F(ks_kernel, name, 24),
    F(ks_kernel, fn, 32), F(ks_kernel, flags, 40), F(ks_kernel, _pad, 44),
    F(ks_kernels_iface, size, 0), F(ks_kernels_iface, kernel_size, 4), F(ks_kernels_iface, n_kernels, 8),
    F(ks_kernels_iface, _pad, 12), F(ks_kernels_iface, kernels, 16),
    F(ks_tensor, size, 0), F(ks_tensor, type, 4), F(ks_tensor, name, 8), F(ks_tensor, rank, 16),
    F(ks_tensor, _pad, 20), F(ks_tensor, shape, 24), F(ks_tensor, bytes, 88),
    F(ks_value, size, 0), F(ks_value, type, 4), F(ks_value, n, 8), F(ks_value, i, 16), F(ks_value, f, 24),
    F(ks_value, s, 32), F(ks_value, s_bytes, 40),
    F(ks_loader_iface, size, 0), F(ks_loader_iface, _pad, 4), F(ks_loader_iface, sniff, 8),
    F(ks_loader_iface, open, 16), F(ks_loader_iface, close, 24), F(ks_loader_iface, tensor, 32),
    F(ks_loader_iface, read, 40), F(ks_loader_iface, map, 48), F(ks_loader_iface, meta, 56),
    F(ks_sampling, size, 0), F(ks_sampling, n_bias, 4), F(ks_sampling, temperature, 8), F(ks_sampling, top_p, 12),
    F(ks_sampling, min_p, 16), F(ks_sampling, presence_penalty, 20), F(ks_sampling, frequency_penalty, 24),
    F(ks_sampling, repetition_penalty, 28), F(ks_sampling, top_k, 32), F(ks_sampling, has_seed, 36),
    F(ks_sampling, seed, 40), F(ks_sampling, bias_ids, 48), F(ks_sampling, bias, 56),
    F(ks_request, size, 0), F(ks_request, n, 4), F(ks_request, messages, 8), F(ks_request, messages_bytes, 16),
    F(ks_request, tools, 24), F(ks_request, tools_bytes, 32), F(ks_request, kwargs, 40),
    F(ks_request, kwargs_bytes, 48), F(ks_request, text, 56), F(ks_request, text_bytes, 64), F(ks_request, ids, 72),
    F(ks_request, n_ids, 80), F(ks_request, max_tokens, 88), F(ks_request, n_logprobs, 92), F(ks_request, echo, 96),
    F(ks_request, ignore_eos, 100), F(ks_request, stop, 104), F(ks_request, n_stop, 112), F(ks_request, flags, 116),
    F(ks_request, sampling, 120),
    F(ks_logprob, id, 0), F(ks_logprob, logprob, 4), F(ks_logprob, bytes, 8), F(ks_logprob, n_bytes, 16),
    F(ks_logprob, _pad, 20),
    F(ks_token_info, size, 0), F(ks_token_info, n_top, 4), F(ks_token_info, token, 8), F(ks_token_info, top, 32),
    F(ks_token_info, text_offset, 40),
    F(ks_usage, size, 0), F(ks_usage, prompt_tokens, 4), F(ks_usage, cached_tokens, 8),
    F(ks_usage, completion_tokens, 12), F(ks_usage, queue_ms, 16), F(ks_usage, prefill_ms, 24),
    F(ks_usage, decode_ms, 32),
    F(ks_sink, size, 0), F(ks_sink, _pad, 4), F(ks_sink, arg, 8), F(ks_sink, on_begin, 16), F(ks_sink, on_text, 24),
    F(ks_sink, on_finish, 32), F(ks_sink, on_done, 40),
    F(ks_model_info, size, 0), F(ks_model_info, n_ctx, 4), F(ks_model_info, n_vocab, 8),
    F(ks_model_info, n_layers, 12), F(ks_model_info, name, 16), F(ks_model_info, arch, 24),
    F(ks_model_info, path, 32), F(ks_model_info, weight_bytes, 40), F(ks_model_info, created, 48),
    F(ks_stats, size, 0), F(ks_stats, n_running, 4), F(ks_stats, n_waiting, 8), F(ks_stats, max_running, 12),
    F(ks_stats, requests, 16), F(ks_stats, prompt_tokens, 24), F(ks_stats, cached_tokens, 32),
    F(ks_stats, generated_tokens, 40), F(ks_stats, steps, 48), F(ks_stats, errors, 56), F(ks_stats, cancels, 64),
    F(ks_stats, kv_pages_total, 72), F(ks_stats, kv_pages_used, 76), F(ks_stats, uptime_s, 80),
    F(ks_stats, busy_s, 88),
    F(ks_stats, experts, 96), F(ks_stats, expert_slots, 100), F(ks_stats, experts_resident, 104),
    F(ks_stats, experts_hot, 112), F(ks_stats, experts_cold, 120), F(ks_stats, expert_uploads, 128),
    F(ks_stats, expert_upload_bytes, 136), F(ks_stats, link_bytes_in, 144), F(ks_stats, link_bytes_out, 152),
    F(ks_stats, device_s, 160), F(ks_stats, device_wait_s, 168), F(ks_stats, experts_cpu_s, 176),
    F(ks_stats, experts_cpu_bytes, 184), F(ks_stats, experts_link_bytes, 192),
    F(ks_engine_api, size, 0), F(ks_engine_api, _pad, 4), F(ks_engine_api, submit, 8), F(ks_engine_api, cancel, 16),
    F(ks_engine_api, describe, 24), F(ks_engine_api, stats, 32), F(ks_engine_api, tokenize, 40),
    F(ks_engine_api, detokenize, 48),
    F(ks_frontend_iface, size, 0), F(ks_frontend_iface, _pad, 4), F(ks_frontend_iface, start, 8),
    F(ks_frontend_iface, drain, 16), F(ks_frontend_iface, stop, 24),
};

/* A struct may grow, but not shrink. Frozen: it has no size of its own, or lies inside another one. */
static const struct {
    const char *name;
    size_t is, was;
    int frozen;
} structs[] = {
    S(ks_err, 512, 1),         S(ks_option, 56, 0),        S(ks_host, 72, 0),           S(ks_probe, 152, 0),
    S(ks_plugin, 120, 0),      S(ks_act, 40, 1),           S(ks_quant_args, 40, 0),     S(ks_matmul_args, 96, 0),
    S(ks_norm_args, 80, 0),    S(ks_rope_args, 64, 0),     S(ks_glu_args, 56, 0),       S(ks_attn_args, 160, 0),
    S(ks_mul_args, 72, 0),     S(ks_conv_args, 80, 0),     S(ks_delta_args, 152, 0),    S(ks_score_args, 48, 0),
    S(ks_kernel, 40, 0),       S(ks_kernels_iface, 24, 0), S(ks_tensor, 96, 0),         S(ks_value, 48, 0),
    S(ks_loader_iface, 64, 0), S(ks_sampling, 64, 1),      S(ks_request, 184, 0),       S(ks_logprob, 24, 1),
    S(ks_token_info, 48, 0),   S(ks_usage, 40, 0),         S(ks_sink, 48, 0),           S(ks_model_info, 56, 0),
    S(ks_stats, 96, 0),        S(ks_engine_api, 56, 0),    S(ks_frontend_iface, 32, 0),
};
/* clang-format on */

static void fields_stay_where_they_are(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if (fields[i].is != fields[i].was)
            fail_msg("%s is at byte %zu, in 1.0 it was at %zu", fields[i].name, fields[i].is, fields[i].was);
}

static void structs_only_grow(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof structs / sizeof structs[0]; i++)
        if (structs[i].is < structs[i].was || (structs[i].frozen && structs[i].is != structs[i].was))
            fail_msg("%s has %zu bytes, in 1.0 it had %zu", structs[i].name, structs[i].is, structs[i].was);
}

static void the_symbol_carries_the_major_version(void **state)
{
    char name[32];
    (void)state;
    (void)snprintf(name, sizeof name, "krasis_plugin_v%d", KS_ABI_MAJOR);
    assert_string_equal(KS_PLUGIN_SYMBOL, name);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_stay_where_they_are),
        cmocka_unit_test(structs_only_grow),
        cmocka_unit_test(the_symbol_carries_the_major_version),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
