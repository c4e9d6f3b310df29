/* CPU features: CPUID says what the silicon has, XCR0 what the operating system saves, arch_prctl what
 * this process may use of AMX; KRASIS_CPU_MASK hides features for tests and for doubtful machines.
 *
 * The answers are found once (pthread_once) and never change. [any]
 */
#include "cpu/cpu.h"
#include "base/base.h"
#include "base/log.h"
#include <cpuid.h>
#include <immintrin.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

/* XCR0: what the system saves at a task switch. */
#define STATE_AVX UINT64_C(0x6)           /* SSE and the upper half of YMM */
#define STATE_AVX512 UINT64_C(0xe6)       /* and opmask, upper ZMM, ZMM16-31 */
#define STATE_AMX_TILES UINT64_C(0x60006) /* and tile configuration and data */

/* Not in every libc's headers yet. */
#define REQ_XCOMP_PERM 0x1023 /* arch_prctl: may this process use a large state component? */
#define XFEATURE_TILE_DATA 18

enum { EAX, EBX, ECX, EDX };

/* A feature counts only together with what it builds upon, so that hiding avx2 hides all of AVX-512. */
typedef struct feature {
    uint64_t bit;
    uint32_t leaf, subleaf, reg, shift;
    uint64_t state, needs;
    const char *name;
} feature;

#define ROW(name, text, leaf, subleaf, reg, shift, state, needs)    \
    {                                                               \
        KS_CPU(name), leaf, subleaf, reg, shift, state, needs, text \
    }

/* In the order of KS_CPU_MAP; what a row needs stands above it. */
static const feature features[] = {
    ROW(SSE42, "sse4.2", 1, 0, ECX, 20, 0, 0),
    ROW(AVX, "avx", 1, 0, ECX, 28, STATE_AVX, 0),
    ROW(AVX2, "avx2", 7, 0, EBX, 5, STATE_AVX, KS_CPU(AVX)),
    ROW(FMA, "fma", 1, 0, ECX, 12, STATE_AVX, KS_CPU(AVX)),
    ROW(F16C, "f16c", 1, 0, ECX, 29, STATE_AVX, KS_CPU(AVX)),
    ROW(BMI2, "bmi2", 7, 0, EBX, 8, 0, 0),
    ROW(AVX_VNNI, "avxvnni", 7, 1, EAX, 4, STATE_AVX, KS_CPU(AVX2)),
    ROW(AVX512F, "avx512f", 7, 0, EBX, 16, STATE_AVX512, KS_CPU(AVX2)),
    ROW(AVX512BW, "avx512bw", 7, 0, EBX, 30, STATE_AVX512, KS_CPU(AVX512F)),
    ROW(AVX512VL, "avx512vl", 7, 0, EBX, 31, STATE_AVX512, KS_CPU(AVX512F)),
    ROW(AVX512DQ, "avx512dq", 7, 0, EBX, 17, STATE_AVX512, KS_CPU(AVX512F)),
    ROW(AVX512_VNNI, "avx512vnni", 7, 0, ECX, 11, STATE_AVX512, KS_CPU(AVX512F)),
    ROW(AVX512_BF16, "avx512bf16", 7, 1, EAX, 5, STATE_AVX512, KS_CPU(AVX512F)),
    ROW(AVX512_VBMI, "avx512vbmi", 7, 0, ECX, 1, STATE_AVX512, KS_CPU(AVX512F)),
    ROW(AVX512_FP16, "avx512fp16", 7, 0, EDX, 23, STATE_AVX512, KS_CPU(AVX512BW)),
    ROW(AMX_TILE, "amx-tile", 7, 0, EDX, 24, STATE_AMX_TILES, 0),
    ROW(AMX_INT8, "amx-int8", 7, 0, EDX, 25, STATE_AMX_TILES, KS_CPU(AMX_TILE)),
    ROW(AMX_BF16, "amx-bf16", 7, 0, EDX, 22, STATE_AMX_TILES, KS_CPU(AMX_TILE)),
};
#undef ROW

#define KS_CPU_ONE(name, bit, text) +1
_Static_assert(KS_COUNT(features) == 0 KS_CPU_MAP(KS_CPU_ONE), "a feature of KS_CPU_MAP has no row here");
#undef KS_CPU_ONE

static pthread_once_t once = PTHREAD_ONCE_INIT;
static uint64_t found_bits; /* written under once */
static char found_brand[64];

__attribute__((target("xsave"))) static uint64_t read_xcr0(void)
{
    return _xgetbv(0);
}

/* What the operating system saves; 0 without OSXSAVE. */
static uint64_t saved_state(void)
{
    uint32_t r[4];
    if (!__get_cpuid(1, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) || !(r[ECX] >> 27 & 1)) return 0;
    uint64_t state = read_xcr0();
    /* Linux gives tile data on request only; without the permission its first use is a SIGILL. */
    if ((state & STATE_AMX_TILES) == STATE_AMX_TILES &&
        syscall(SYS_arch_prctl, REQ_XCOMP_PERM, XFEATURE_TILE_DATA) != 0)
        state &= ~(UINT64_C(1) << XFEATURE_TILE_DATA);
    return state;
}

/* Drops what stands on something that is not there. */
static uint64_t consistent(uint64_t bits)
{
    for (size_t i = 0; i < KS_COUNT(features); i++)
        if ((features[i].needs & bits) != features[i].needs) bits &= ~features[i].bit;
    return bits;
}

static uint64_t detect(void)
{
    uint64_t bits = 0, state = saved_state();
    for (size_t i = 0; i < KS_COUNT(features); i++) {
        const feature *f = &features[i];
        uint32_t r[4] = { 0 }; /* a leaf beyond the CPU's last one: nothing */
        if (!__get_cpuid_count(f->leaf, f->subleaf, &r[EAX], &r[EBX], &r[ECX], &r[EDX])) continue;
        if ((r[f->reg] >> f->shift & 1) && (state & f->state) == f->state) bits |= f->bit;
    }
    return consistent(bits);
}

/* The one place that warns from below the engine: nobody can be handed an error here, and a misspelled
 * mask must not pass in silence. */
static uint64_t hide(uint64_t bits, const char *mask)
{
    if (!strcmp(mask, "none")) return 0;
    while (*mask) {
        size_t n = strcspn(mask, ", ");
        char name[32];
        if (n) {
            (void)snprintf(name, sizeof name, "%.*s", (int)KS_MIN(n, sizeof name), mask);
            uint64_t bit = ks_cpu_feature(name);
            if (!bit) ks_log(KS_LOG_WARN, "cpu", "KRASIS_CPU_MASK: '%s' is no CPU feature, ignored", name);
            bits &= ~bit;
        }
        mask += n;
        mask += strspn(mask, ", ");
    }
    return consistent(bits);
}

static void find_brand(void)
{
    uint32_t r[12] = { 0 };
    for (uint32_t i = 0; i < 3; i++)
        if (!__get_cpuid(0x80000002u + i, &r[4 * i], &r[4 * i + 1], &r[4 * i + 2], &r[4 * i + 3])) break;
    char text[sizeof r + 1] = "";
    memcpy(text, r, sizeof r);
    char *p = text + strspn(text, " "), *end = p + strlen(p);
    while (end > p && end[-1] == ' ') *--end = 0;
    (void)snprintf(found_brand, sizeof found_brand, "%s", *p ? p : "unknown CPU");
}

static void find_all(void)
{
    const char *mask = getenv("KRASIS_CPU_MASK");
    find_brand();
    found_bits = detect();
    if (mask) found_bits = hide(found_bits, mask);
}

uint64_t ks_cpu_features(void)
{
    (void)pthread_once(&once, find_all);
    return found_bits;
}

const char *ks_cpu_brand(void)
{
    (void)pthread_once(&once, find_all);
    return found_brand;
}

uint64_t ks_cpu_feature(const char *name)
{
    for (size_t i = 0; i < KS_COUNT(features); i++)
        if (!strcmp(name, features[i].name)) return features[i].bit;
    return 0;
}

char *ks_cpu_names(uint64_t bits, char *dst, size_t cap)
{
    size_t n = 0;
    if (cap) dst[0] = 0;
    for (size_t i = 0; i < KS_COUNT(features); i++) {
        size_t len = strlen(features[i].name);
        if (!(bits & features[i].bit)) continue;
        if (cap - n < len + 2) break; /* whole names only */
        if (n) dst[n++] = ' ';
        memcpy(dst + n, features[i].name, len + 1);
        n += len;
    }
    return dst;
}
