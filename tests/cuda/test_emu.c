/* The emulated GPU itself: what is right is right in any order, and what is wrong shows. */
#include "emu.h"
#include "emu_kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define SEEDS 24u
#define N 256u

static cudaStream_t one, two;

static void ok(cudaError_t rc)
{
    if (rc != cudaSuccess) fail_msg("%s", cudaGetErrorString(rc));
}

static void *device(size_t bytes)
{
    void *p = NULL;
    ok(cudaMalloc(&p, bytes));
    return p;
}

static void *pinned(size_t bytes)
{
    void *p = NULL;
    ok(cudaHostAlloc(&p, bytes, cudaHostAllocDefault));
    return p;
}

/* Twice through a pinned buffer, on the way in and out, with a kernel between on another stream. `forget`: which of the
 * waits is left out. True: the numbers are right. */
static bool two_rounds(uint32_t forget)
{
    float *x = device(N * 4), *y = device(N * 4), *in = pinned(N * 4), *out = pinned(N * 4);
    cudaEvent_t there;
    bool right = true;
    ok(cudaEventCreateWithFlags(&there, cudaEventDisableTiming));
    for (uint32_t round = 1; round <= 2; round++) {
        float *to = round == 1 ? x : y;
        for (uint32_t i = 0; i < N; i++) in[i] = (float)(i * round);
        ok(cudaMemcpyAsync(to, in, N * 4, cudaMemcpyHostToDevice, two));
        ok(cudaEventRecord(there, two));
        if (forget != 2) ok(cudaStreamWaitEvent(one, there, 0));
        emu_scale(to, N, 2, one);
        if (forget != 1) ok(cudaEventSynchronize(there)); /* before `in` is written again */
        memset(in, 0, N * 4);
        ok(cudaMemcpyAsync(out, to, N * 4, cudaMemcpyDeviceToHost, one));
        if (forget != 3) ok(cudaStreamSynchronize(one));
        for (uint32_t i = 0; i < N; i++) right = right && out[i] == (float)(2 * i * round);
    }
    ok(cudaDeviceSynchronize());
    ok(cudaEventDestroy(there));
    ok(cudaFree(x));
    ok(cudaFree(y));
    ok(cudaFreeHost(in));
    ok(cudaFreeHost(out));
    return right;
}

static void a_wait_that_is_forgotten_shows(void **state)
{
    (void)state;
    for (uint32_t forget = 0; forget <= 3; forget++) {
        uint32_t wrong = 0;
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            emu_seed(seed);
            wrong += !two_rounds(forget);
        }
        if (forget ? !wrong : wrong) fail_msg("without wait %u: wrong for %u seeds of %u", forget, wrong, SEEDS);
    }
    emu_seed(0);
}

static void memory_of_the_host_that_is_not_pinned_is_read_at_once(void **state)
{
    float *x = device(N * 4), plain[N], back[N];
    (void)state;
    for (uint32_t i = 0; i < N; i++) plain[i] = (float)i;
    ok(cudaMemcpyAsync(x, plain, sizeof plain, cudaMemcpyHostToDevice, one));
    memset(plain, 0, sizeof plain);
    ok(cudaMemcpyAsync(back, x, sizeof back, cudaMemcpyDeviceToHost, one)); /* and written before this returns */
    for (uint32_t i = 0; i < N; i++) assert_true(back[i] == (float)i);
    ok(cudaFree(x));
}

static void new_memory_holds_no_zeros(void **state)
{
    float *x = device(N * 4), back[N];
    (void)state;
    ok(cudaMemcpy(back, x, sizeof back, cudaMemcpyDeviceToHost));
    for (uint32_t i = 0; i < N; i++) assert_true(isnan(back[i]));
    ok(cudaMemset(x, 0, N * 4));
    ok(cudaMemcpy(back, x, sizeof back, cudaMemcpyDeviceToHost));
    for (uint32_t i = 0; i < N; i++) assert_true(back[i] == 0);
    ok(cudaFree(x));
}

static uint32_t wrong_turns(bool racy)
{
    uint32_t *x = device(512), host[128], wrong = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        emu_seed(seed);
        for (uint32_t i = 0; i < 128; i++) host[i] = i;
        ok(cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice));
        emu_turn(x, racy, NULL);
        ok(cudaMemcpy(host, x, sizeof host, cudaMemcpyDeviceToHost));
        for (uint32_t i = 0; i < 128; i++) wrong += host[i] != (i + 1) % 128;
    }
    emu_seed(0);
    ok(cudaFree(x));
    return wrong;
}

static void a_barrier_that_is_forgotten_shows(void **state)
{
    (void)state;
    assert_int_equal(wrong_turns(false), 0);
    assert_true(wrong_turns(true) > 0);
}

static void lanes_exchange_as_the_manual_says(void **state)
{
    uint32_t *out = device(32 * 8 * 4), o[32][8];
    (void)state;
    for (uint64_t seed = 0; seed < 6; seed++) {
        emu_seed(seed);
        emu_lanes(out, NULL);
        ok(cudaMemcpy(o, out, sizeof o, cudaMemcpyDeviceToHost));
        for (uint32_t i = 0; i < 32; i++) {
            assert_int_equal(o[i][0], i ^ 5);
            assert_int_equal(o[i][1], i < 3 ? i : i - 3);
            assert_int_equal(o[i][2], i + 3 < 32 ? i + 3 : i);
            assert_int_equal(o[i][3], 7);
            assert_int_equal(o[i][4], 0x49249249);
            assert_int_equal(o[i][5], 2);
            assert_int_equal(o[i][6], i ^ 1);
            assert_int_equal(o[i][7], i % 8 + 3 < 8 ? i + 3 : i);
        }
    }
    emu_seed(0);
    ok(cudaFree(out));
}

static void a_product_has_its_fragments_where_the_manual_says(void **state)
{
    int8_t a[16][32], b[32][8];
    int32_t c[16][8];
    uint32_t x = 1;
    (void)state;
    for (uint32_t i = 0; i < 512; i++) a[i / 32][i % 32] = (int8_t)((x = x * 1664525u + 1013904223u) >> 24);
    for (uint32_t i = 0; i < 256; i++) b[i / 8][i % 8] = (int8_t)((x = x * 1664525u + 1013904223u) >> 24);
    int8_t *da = device(sizeof a), *db = device(sizeof b);
    int32_t *dc = device(sizeof c);
    ok(cudaMemcpy(da, a, sizeof a, cudaMemcpyHostToDevice));
    ok(cudaMemcpy(db, b, sizeof b, cudaMemcpyHostToDevice));
    emu_product(da, db, dc, NULL);
    ok(cudaMemcpy(c, dc, sizeof c, cudaMemcpyDeviceToHost));
    for (uint32_t i = 0; i < 16; i++)
        for (uint32_t j = 0; j < 8; j++) {
            int32_t sum = 0;
            for (uint32_t k = 0; k < 32; k++) sum += a[i][k] * b[k][j];
            assert_int_equal(c[i][j], sum);
        }
    ok(cudaFree(da));
    ok(cudaFree(db));
    ok(cudaFree(dc));
}

static void a_copy_in_the_background_comes_when_it_is_waited_for(void **state)
{
    uint32_t *from = device(512), *to = device(512), host[128], early_wrong = 0;
    (void)state;
    for (uint32_t i = 0; i < 128; i++) host[i] = i + 1;
    ok(cudaMemcpy(from, host, sizeof host, cudaMemcpyHostToDevice));
    for (uint64_t seed = 0; seed < 4; seed++)
        for (int early = 0; early < 2; early++) {
            emu_seed(seed);
            emu_copy(from, to, early, NULL);
            ok(cudaMemcpy(host, to, sizeof host, cudaMemcpyDeviceToHost));
            for (uint32_t i = 0; i < 128; i++)
                if (early && i % 4 == 0)
                    early_wrong += host[i] != i + 1;
                else
                    assert_int_equal(host[i], i % 4 == 3 ? 0 : i + 1); /* 12 bytes, then zeros */
        }
    emu_seed(0);
    assert_true(early_wrong > 0);
    ok(cudaFree(from));
    ok(cudaFree(to));
}

/* Small integers: every sum of theirs is exact, in both formats. */
static uint16_t small_number(int v, bool bf16)
{
    static const uint16_t f16[] = { 0, 0x3c00, 0x4000, 0x4200, 0x4400 }, b16[] = { 0, 0x3f80, 0x4000, 0x4040, 0x4080 };
    return (uint16_t)((bf16 ? b16 : f16)[v < 0 ? -v : v] | (v < 0 ? 0x8000 : 0));
}

static uint32_t wrong_products(uint32_t n, bool bf16, uint32_t how, bool early)
{
    int a[64][32], b[32][128];
    uint16_t ha[64 * 32], hb[32 * 128];
    float c[64 * 128];
    uint32_t x = n + how, wrong = 0;
    for (uint32_t i = 0; i < 64 * 32; i++)
        ha[i] = small_number(a[i / 32][i % 32] = (int)((x = x * 1664525u + 1013904223u) >> 24) % 9 - 4, bf16);
    for (uint32_t i = 0; i < 32 * n; i++)
        hb[i] = small_number(b[i / n][i % n] = (int)((x = x * 1664525u + 1013904223u) >> 24) % 9 - 4, bf16);
    uint16_t *da = device(sizeof ha), *db = device(sizeof hb);
    float *dc = device(sizeof c);
    ok(cudaMemcpy(da, ha, sizeof ha, cudaMemcpyHostToDevice));
    ok(cudaMemcpy(db, hb, 32 * n * sizeof *hb, cudaMemcpyHostToDevice));
    emu_wg_product(da, db, dc, n, bf16, how, early, NULL);
    ok(cudaMemcpy(c, dc, 64 * n * sizeof *c, cudaMemcpyDeviceToHost));
    for (uint32_t i = 0; i < 64; i++)
        for (uint32_t j = 0; j < n; j++) {
            int sum = 0;
            for (uint32_t k = 0; k < 32; k++) sum += a[i][k] * b[k][j];
            wrong += c[i * n + j] != (float)sum;
        }
    ok(cudaFree(da));
    ok(cudaFree(db));
    ok(cudaFree(dc));
    return wrong;
}

static void a_product_of_a_warpgroup_finds_its_factors_where_the_manual_says(void **state)
{
    uint32_t early = 0;
    (void)state;
    for (uint64_t seed = 0; seed < 6; seed++) {
        emu_seed(seed);
        for (uint32_t i = 0; i < 12; i++)
            assert_int_equal(wrong_products(i % 2 ? 128 : 64, i / 2 % 2, i / 4, false), 0);
        early += wrong_products(64, false, EMU_WG_PLAIN, true);
    }
    emu_seed(0);
    assert_true(early > 0);
}

static uint32_t wrong_byte_products(uint32_t n, uint32_t how, bool early)
{
    int8_t a[64][64], b[64][64];
    int32_t c[64 * 64];
    uint32_t x = n + how, wrong = 0;
    for (uint32_t i = 0; i < 64 * 64; i++) {
        a[i / 64][i % 64] = (int8_t)((x = x * 1664525u + 1013904223u) >> 24);
        b[i / 64][i % 64] = (int8_t)((x = x * 1664525u + 1013904223u) >> 24);
    }
    int8_t *da = device(sizeof a), *db = device(sizeof b);
    int32_t *dc = device(sizeof c);
    ok(cudaMemcpy(da, a, sizeof a, cudaMemcpyHostToDevice));
    ok(cudaMemcpy(db, b, sizeof b, cudaMemcpyHostToDevice));
    emu_wg_product_s8(da, db, dc, n, how, early, NULL);
    ok(cudaMemcpy(c, dc, 64 * n * sizeof *c, cudaMemcpyDeviceToHost));
    for (uint32_t i = 0; i < 64; i++)
        for (uint32_t j = 0; j < n; j++) {
            int32_t sum = 0;
            for (uint32_t k = 0; k < 64; k++) sum += a[i][k] * b[j][k];
            wrong += c[i * n + j] != sum;
        }
    ok(cudaFree(da));
    ok(cudaFree(db));
    ok(cudaFree(dc));
    return wrong;
}

static void so_does_one_of_bytes(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 6; seed++) {
        emu_seed(seed);
        for (uint32_t n = 16; n <= 64; n += 16)
            for (uint32_t how = EMU_WG_PLAIN; how <= EMU_WG_ROWS_ALONG_K; how++)
                assert_int_equal(wrong_byte_products(n, how, false), 0);
    }
    emu_seed(0);
}

static uint32_t wrong_hand_overs(bool early)
{
    enum { ROUNDS = 5 };
    uint32_t *out = device(ROUNDS * 64 * 4), host[ROUNDS * 64], wrong = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        emu_seed(seed);
        emu_hand_over(out, ROUNDS, early, NULL);
        ok(cudaMemcpy(host, out, sizeof host, cudaMemcpyDeviceToHost));
        for (uint32_t i = 0; i < ROUNDS * 64; i++) wrong += host[i] != i / 64 * 100 + 63 - i % 64;
    }
    emu_seed(0);
    ok(cudaFree(out));
    return wrong;
}

static void parts_of_a_block_wait_for_each_other(void **state)
{
    (void)state;
    assert_int_equal(wrong_hand_overs(false), 0);
    assert_true(wrong_hand_overs(true) > 0);
}

/* In a process of its own: how it ended, and what it said. */
static int ends(void (*wrong)(void), char *said, size_t cap)
{
    int pipes[2], status = 0;
    assert_int_equal(pipe(pipes), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)dup2(pipes[1], 2);
        (void)signal(SIGSEGV, SIG_DFL);
        (void)signal(SIGABRT, SIG_DFL);
        wrong();
        _exit(0);
    }
    close(pipes[1]);
    size_t n = 0;
    for (ssize_t got = 1; got > 0 && n + 1 < cap; n += got > 0 ? (size_t)got : 0)
        got = read(pipes[0], said + n, cap - 1 - n);
    said[n] = 0;
    close(pipes[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void do_wrong(uint32_t how, uint32_t n)
{
    float *x = device(64 * 4);
    emu_do_wrong(how, x, n, NULL);
    (void)cudaDeviceSynchronize();
}

static void nothing_wrong(void)
{
    do_wrong(EMU_RIGHT, 0);
}
static void part_of_a_warp(void)
{
    do_wrong(EMU_LANES_PART, 0);
}
static void part_of_a_block(void)
{
    do_wrong(EMU_BARRIERS_PART, 0);
}
static void not_aligned(void)
{
    do_wrong(EMU_NOT_ALIGNED, 0);
}
static void factor_is_written_early(void)
{
    emu_seed(2); /* products are done late */
    (void)wrong_byte_products(16, EMU_WG_PLAIN, true);
}
static void phase_unended(void)
{
    do_wrong(EMU_PHASE_UNENDED, 0);
}
static void too_far(void)
{
    do_wrong(EMU_TOO_FAR, 64);
}
static void shared_too_far(void)
{
    do_wrong(EMU_SHARED_TOO_FAR, 16);
}
static void freed(void)
{
    float *x = device(64 * 4);
    (void)cudaFree(x);
    emu_do_wrong(EMU_RIGHT, x, 0, NULL);
    (void)cudaDeviceSynchronize();
}
static void host_touches_device(void)
{
    volatile float *x = device(64 * 4);
    emu_seed(0);
    x[0] = 1;
}
static void kernel_gets_plain_memory(void)
{
    float *x = malloc(64 * 4);
    emu_do_wrong(EMU_RIGHT, x, 0, NULL);
    (void)cudaDeviceSynchronize();
}

static void what_must_not_be_done_ends_the_process(void **state)
{
    static const struct {
        void (*wrong)(void);
        const char *says; /* NULL: a fault of memory */
    } tests[] = {
        { part_of_a_warp, "waits for lanes 0000ffff, which have ended" },
        { part_of_a_block, "nobody can go on" },
        { not_aligned, "is not aligned" },
        { phase_unended, "nobody can go on" },
        { factor_is_written_early, "were written before their product" },
        { kernel_gets_plain_memory, "which is plain memory of the host" },
        { too_far, NULL },
        { shared_too_far, NULL },
        { freed, NULL },
        { host_touches_device, NULL },
    };
    char said[4096];
    (void)state;
    assert_int_equal(ends(nothing_wrong, said, sizeof said), 0);
    for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        int status = ends(tests[i].wrong, said, sizeof said);
        if (status == 0) fail_msg("wrong %zu is not noticed", i);
        if (tests[i].says && !strstr(said, tests[i].says)) fail_msg("wrong %zu says '%s'", i, said);
    }
}

static void arguments_that_cannot_be_are_refused(void **state)
{
    char *x = device(1000), host[1000];
    (void)state;
    assert_int_equal(cudaMemcpy(x + 500, host, 501, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(x, host, 8, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy2DAsync(x, 100, host, 100, 101, 2, cudaMemcpyHostToDevice, one), cudaErrorInvalidValue);
    assert_int_equal(cudaMemsetAsync(x, 0, 1001, one), cudaErrorInvalidValue);
    emu_too_much_shared(one);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    emu.limit = emu.held + 1000;
    void *p;
    assert_int_equal(cudaMalloc(&p, 1001), cudaErrorMemoryAllocation);
    ok(cudaMalloc(&p, 1000));
    ok(cudaFree(p));
    emu.limit = 0;
    ok(cudaFree(x));
}

static void a_lost_device_stays_lost(void **state)
{
    float *x = device(N * 4);
    (void)state;
    emu.calls = 0;
    emu.fail_at = 2;
    emu.lose = true;
    ok(cudaMemsetAsync(x, 0, N * 4, one));
    assert_int_equal(cudaStreamSynchronize(one), cudaErrorLaunchFailure);
    assert_int_equal(cudaStreamSynchronize(one), cudaErrorLaunchFailure);
    assert_int_equal(cudaGetLastError(), cudaErrorLaunchFailure);
    assert_int_equal(cudaFree(x), cudaErrorLaunchFailure);
    emu.fail_at = 0;
    emu.lose = emu.lost = false;
    assert_int_equal(emu.n_blocks, 0);
}

static int set_up(void **state)
{
    (void)state;
    ok(cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking));
    ok(cudaStreamCreateWithFlags(&two, cudaStreamNonBlocking));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    ok(cudaStreamDestroy(one));
    ok(cudaStreamDestroy(two));
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wait_that_is_forgotten_shows),
        cmocka_unit_test(memory_of_the_host_that_is_not_pinned_is_read_at_once),
        cmocka_unit_test(new_memory_holds_no_zeros),
        cmocka_unit_test(a_barrier_that_is_forgotten_shows),
        cmocka_unit_test(lanes_exchange_as_the_manual_says),
        cmocka_unit_test(a_product_has_its_fragments_where_the_manual_says),
        cmocka_unit_test(a_copy_in_the_background_comes_when_it_is_waited_for),
        cmocka_unit_test(a_product_of_a_warpgroup_finds_its_factors_where_the_manual_says),
        cmocka_unit_test(so_does_one_of_bytes),
        cmocka_unit_test(parts_of_a_block_wait_for_each_other),
        cmocka_unit_test(what_must_not_be_done_ends_the_process),
        cmocka_unit_test(arguments_that_cannot_be_are_refused),
        cmocka_unit_test(a_lost_device_stays_lost),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
