/* CPU features: against the kernel's own list, and with KRASIS_CPU_MASK. The answers are found once a process, so
 * each case runs in a child. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "base/base.h"
#include "base/file.h"
#include "cpu/cpu.h"
#include <cmocka.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct answer {
    uint64_t features;
    char log[512];
} answer;

/* What a process with this mask (NULL: none) finds, and what it says. */
static answer ask(const char *mask)
{
    answer *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), ret;
    int fds[2], status = 0;
    assert_true(shared != MAP_FAILED);
    assert_int_equal(pipe(fds), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        (void)dup2(fds[1], STDERR_FILENO);
        if (mask ? setenv("KRASIS_CPU_MASK", mask, 1) : unsetenv("KRASIS_CPU_MASK")) _exit(1);
        shared->features = ks_cpu_features();
        _exit(shared->features == ks_cpu_features() ? 0 : 2);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    (void)close(fds[1]);
    ssize_t n = read(fds[0], shared->log, sizeof shared->log - 1);
    assert_true(n >= 0);
    (void)close(fds[0]);
    ret = *shared;
    (void)munmap(shared, sizeof *shared);
    return ret;
}

/* Linux's names, where they differ from ours. */
static const char *linux_name(const char *name)
{
    static const char *const rows[][2] = {
        { "sse4.2", "sse4_2" },          { "avxvnni", "avx_vnni" },       { "avx512vnni", "avx512_vnni" },
        { "avx512bf16", "avx512_bf16" }, { "avx512fp16", "avx512_fp16" }, { "amx-tile", "amx_tile" },
        { "amx-int8", "amx_int8" },      { "amx-bf16", "amx_bf16" },
    };
    for (size_t i = 0; i < KS_COUNT(rows); i++)
        if (!strcmp(rows[i][0], name)) return rows[i][1];
    return name;
}

static void features_equal_the_kernels_list(void **state)
{
    (void)state;
    char *text = NULL, flags[8192];
    size_t n = 0;
    assert_int_equal(ks_file_read("/proc/cpuinfo", (size_t)16 << 20, &text, &n, NULL), 0);
    const char *line = strstr(text, "\nflags\t"), *list = line ? strchr(line, ':') : NULL;
    assert_non_null(list);
    (void)snprintf(flags, sizeof flags, "%.*s ", (int)strcspn(list, "\n"), list); /* ": fpu vme ... " */
    free(text);
    answer a = ask(NULL);
    static const char *const names[] = {
#define NAME(id, bit, str) str,
        KS_CPU_MAP(NAME)
#undef NAME
    };
    for (size_t i = 0; i < KS_COUNT(names); i++) {
        char word[40];
        (void)snprintf(word, sizeof word, " %s ", linux_name(names[i]));
        bool ours = a.features & ks_cpu_feature(names[i]), theirs = strstr(flags, word) != NULL;
        if (ours && !theirs) fail_msg("%s is found, the kernel does not list it", names[i]);
        /* The kernel may list AMX that a container's seccomp filter then denies. */
        if (theirs && !ours && strncmp(names[i], "amx", 3) != 0) fail_msg("%s is listed and not found", names[i]);
    }
}

static void names_and_bits_belong_together(void **state)
{
    (void)state;
    char text[512], two[13];
#define CHECK(id, bit, str) assert_true(ks_cpu_feature(str) == KS_CPU(id));
    KS_CPU_MAP(CHECK)
#undef CHECK
    assert_true(ks_cpu_feature("avx3") == 0);
    assert_true(ks_cpu_feature("") == 0);
    assert_string_equal(ks_cpu_names(KS_CPU(AMX_INT8) | KS_CPU(AVX2) | KS_CPU(FMA), text, sizeof text),
                        "avx2 fma amx-int8");
    assert_string_equal(ks_cpu_names(KS_CPU(AVX2) | KS_CPU(FMA) | KS_CPU(BMI2), two, sizeof two), "avx2 fma");
    assert_string_equal(ks_cpu_names(0, text, sizeof text), "");
    assert_string_equal(ks_cpu_names(UINT64_MAX, text, 1), "");
    assert_ptr_equal(ks_cpu_names(1, text, 0), text);
}

static void the_mask_hides_features_and_what_needs_them(void **state)
{
    (void)state;
    uint64_t all = ask(NULL).features, wide = 0;
    assert_true(ask("").features == all);
    assert_true(ask("none").features == 0);
    assert_true(ask("bmi2").features == (all & ~KS_CPU(BMI2)));
    assert_true(ask(" fma, ,bmi2,").features == (all & ~(KS_CPU(BMI2) | KS_CPU(FMA))));
#define WIDE(id, bit, str) \
    if (!strncmp(str, "avx512", 6)) wide |= KS_CPU(id);
    KS_CPU_MAP(WIDE)
#undef WIDE
    assert_true(ask("avx512f").features == (all & ~wide));
    assert_true(ask("avx2").features == (all & ~(wide | KS_CPU(AVX2) | KS_CPU(AVX_VNNI))));
    assert_true(ask("amx-tile").features == (all & ~(KS_CPU(AMX_TILE) | KS_CPU(AMX_INT8) | KS_CPU(AMX_BF16))));
}

static void a_misspelled_mask_is_told_and_changes_nothing(void **state)
{
    (void)state;
    answer a = ask("AVX2,an-extremely-long-name-that-is-no-feature");
    assert_true(a.features == ask(NULL).features);
    assert_non_null(strstr(a.log, "warn  cpu: KRASIS_CPU_MASK: 'AVX2' is no CPU feature, ignored\n"));
    assert_non_null(strstr(a.log, "'an-extremely-long-name-that-is-' is no"));
}

static void the_machine_has_a_name_cores_and_memory(void **state)
{
    (void)state;
    uint32_t cpus[1024], n = ks_cpu_cores(cpus, 1024);
    cpu_set_t set;
    assert_true(ks_cpu_brand()[0] != 0 && ks_cpu_brand()[0] != ' ');
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    assert_in_range(n, 1, CPU_COUNT(&set));
    for (uint32_t i = 0; i < n; i++) {
        assert_true(CPU_ISSET(cpus[i], &set));
        if (i) assert_true(cpus[i] > cpus[i - 1]);
    }
    assert_int_equal(ks_cpu_cores(cpus, 1), 1);
    assert_int_equal(ks_cpu_cores(NULL, 0), 1);
    assert_true(ks_cpu_numa_nodes() >= 1);
    assert_true(ks_ram_bytes() > (uint64_t)64 << 20);
    assert_true(ks_ram_available_bytes() > 0 && ks_ram_available_bytes() <= ks_ram_bytes());
}

static void affinity_decides_which_cores_are_ours(void **state)
{
    (void)state;
    uint32_t cpus[1024], one = 0, n = ks_cpu_cores(cpus, 1024);
    cpu_set_t old, set;
    assert_int_equal(sched_getaffinity(0, sizeof old, &old), 0);
    CPU_ZERO(&set);
    CPU_SET(cpus[n - 1], &set);
    assert_int_equal(sched_setaffinity(0, sizeof set, &set), 0);
    assert_int_equal(ks_cpu_cores(&one, 1), 1);
    assert_int_equal(one, cpus[n - 1]);
    assert_int_equal(sched_setaffinity(0, sizeof old, &old), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(features_equal_the_kernels_list),
        cmocka_unit_test(names_and_bits_belong_together),
        cmocka_unit_test(the_mask_hides_features_and_what_needs_them),
        cmocka_unit_test(a_misspelled_mask_is_told_and_changes_nothing),
        cmocka_unit_test(the_machine_has_a_name_cores_and_memory),
        cmocka_unit_test(affinity_decides_which_cores_are_ours),
    };
    return cmocka_run_group_tests_name("cpu", tests, NULL, NULL);
}
