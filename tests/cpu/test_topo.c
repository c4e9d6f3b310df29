/* Machines made of files: SMT siblings, cgroup v1 and v2 limits as containers show them, missing files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "base/base.h"
#include "base/file.h"
#include "cpu/numa.h"
#include "cpu/topo.h"
#include <cmocka.h>
#include <limits.h>

static char root[PATH_MAX];

static int make_root(void **state)
{
    (void)state;
    char name[] = "topo-XXXXXX";
    if (!mkdtemp(name)) return -1;
    (void)snprintf(root, sizeof root, "%s", name);
    return 0;
}

static int remove_root(void **state)
{
    (void)state;
    char cmd[PATH_MAX + 16];
    (void)snprintf(cmd, sizeof cmd, "rm -r '%s'", root);
    return system(cmd);
}

/* A file of the machine, with its folders. */
static void put(const char *path, const char *text)
{
    char name[PATH_MAX + 256];
    ks_err err;
    (void)snprintf(name, sizeof name, "%s%s", root, path);
    char *slash = strrchr(name, '/');
    *slash = 0;
    assert_int_equal(ks_mkdirs(name, &err), 0);
    *slash = '/';
    assert_int_equal(ks_file_write(name, text, strlen(text), &err), 0);
}

static void put_siblings(uint32_t cpu, const char *list)
{
    char path[128];
    (void)snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%u/topology/thread_siblings_list", (unsigned)cpu);
    put(path, list);
}

static void one_thread_of_each_core_is_picked(void **state)
{
    (void)state;
    static const char *const lists[] = { "0,4\n", "1,5\n", "2-3\n", "2-3\n", "0,4\n", "1,5\n" };
    const uint32_t all[] = { 0, 1, 2, 3, 4, 5 }, some[] = { 3, 4, 5 }, unknown[] = { 2, 3, 70, 71 };
    uint32_t got[6] = { 0 };
    for (uint32_t i = 0; i < 6; i++) put_siblings(i, lists[i]);
    assert_int_equal(ks__topo_pick(root, all, 6, got), 3);
    assert_true(got[0] == 0 && got[1] == 1 && got[2] == 2);
    assert_int_equal(ks__topo_pick(root, some, 3, got), 3); /* the first sibling may be out of reach */
    assert_true(got[0] == 3 && got[1] == 4 && got[2] == 5);
    assert_int_equal(ks__topo_pick(root, unknown, 4, got), 3); /* no file: a core of its own */
    assert_true(got[0] == 2 && got[1] == 70 && got[2] == 71);
}

static void no_files_mean_no_limits(void **state)
{
    (void)state;
    assert_int_equal(ks__topo_quota(root), UINT32_MAX);
    assert_true(ks__topo_memory_left(root) == UINT64_MAX);
    assert_true(ks__topo_meminfo(root, "MemTotal") == 0);
    assert_int_equal(ks__topo_numa_nodes(root), 1);
}

static void use_v2(const char *path, const char *mount_root)
{
    char text[512];
    (void)snprintf(text, sizeof text, "0::%s\n", path);
    put("/proc/self/cgroup", text);
    (void)snprintf(text, sizeof text,
                   "22 1 0:20 / /proc rw - proc proc rw\n31 23 0:28 %s /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 "
                   "cgroup2 rw,nsdelegate\n",
                   mount_root);
    put("/proc/self/mountinfo", text);
}

static void a_v2_quota_is_rounded_down_to_whole_cpus(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint32_t cpus;
    } rows[] = {
        { "max 100000\n", UINT32_MAX }, { "400000 100000\n", 4 }, { "350000 100000\n", 3 },
        { "50000 100000\n", 1 },        { "", UINT32_MAX },       { "what\n", UINT32_MAX },
        { "100 0\n", UINT32_MAX },
    };
    use_v2("/", "/");
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        put("/sys/fs/cgroup/cpu.max", rows[i].text);
        assert_int_equal(ks__topo_quota(root), rows[i].cpus);
    }
}

static void the_tightest_level_above_counts(void **state)
{
    (void)state;
    use_v2("/user.slice/app/job", "/");
    put("/sys/fs/cgroup/user.slice/app/job/cpu.max", "800000 100000\n");
    put("/sys/fs/cgroup/user.slice/app/cpu.max", "max 100000\n");
    put("/sys/fs/cgroup/user.slice/cpu.max", "200000 100000\n");
    put("/sys/fs/cgroup/cpu.max", "600000 100000\n");
    assert_int_equal(ks__topo_quota(root), 2);
    put("/sys/fs/cgroup/user.slice/cpu.max", "max 100000\n");
    assert_int_equal(ks__topo_quota(root), 6);
}

static void a_container_sees_its_folder_as_the_mounts_root(void **state)
{
    (void)state;
    put("/sys/fs/cgroup/cpu.max", "300000 100000\n");
    use_v2("/docker/abc", "/docker/abc"); /* no cgroup namespace: the host's path, a bind mount */
    assert_int_equal(ks__topo_quota(root), 3);
    use_v2("/../../other", "/"); /* from outside the namespace */
    assert_int_equal(ks__topo_quota(root), 3);
    use_v2("/elsewhere", "/docker/abc");
    assert_int_equal(ks__topo_quota(root), 3);
}

static void v2_memory_counts_what_is_used_and_not_reclaimable(void **state)
{
    (void)state;
    use_v2("/a", "/");
    put("/sys/fs/cgroup/a/memory.max", "8000\n");
    put("/sys/fs/cgroup/a/memory.current", "5000\n");
    assert_true(ks__topo_memory_left(root) == 3000);
    put("/sys/fs/cgroup/a/memory.stat", "anon 1000\ninactive_file 2500\nactive_file 1\n");
    assert_true(ks__topo_memory_left(root) == 5500);
    put("/sys/fs/cgroup/a/memory.current", "20000\n"); /* above the limit for a moment */
    assert_true(ks__topo_memory_left(root) == 0);
    put("/sys/fs/cgroup/memory.max", "max\n");
    put("/sys/fs/cgroup/a/memory.max", "max\n");
    assert_true(ks__topo_memory_left(root) == UINT64_MAX);
}

static void v1_limits_are_read_from_each_controller(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "9:name=systemd:/\n4:memory:/box\n2:cpu,cpuacct:/box\nbroken\n1:cpuset:/no\n");
    put("/proc/self/mountinfo",
        "31 23 0:28 / /cg rw - tmpfs tmpfs rw\nbroken\n32 31 0:29 / /cg/cpuset rw - cgroup cgroup rw,cpuset\n"
        "33 31 0:30 / /cg/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
        "34 31 0:31 / /cg/memory rw - cgroup cgroup rw,memory\n");
    put("/cg/cpu/box/cpu.cfs_quota_us", "250000\n");
    put("/cg/cpu/box/cpu.cfs_period_us", "100000\n");
    put("/cg/cpu/cpu.cfs_quota_us", "-1\n");
    put("/cg/cpu/cpu.cfs_period_us", "100000\n");
    put("/cg/memory/box/memory.limit_in_bytes", "10000\n");
    put("/cg/memory/box/memory.usage_in_bytes", "4000\n");
    put("/cg/memory/box/memory.stat", "inactive_file 7\ntotal_inactive_file 1000\n");
    put("/cg/memory/memory.limit_in_bytes", "9223372036854771712\n");
    assert_int_equal(ks__topo_quota(root), 2);
    assert_true(ks__topo_memory_left(root) == 7000);
}

static void meminfo_is_read_in_bytes(void **state)
{
    (void)state;
    put("/proc/meminfo", "MemTotal:       24682416 kB\nMemFree: 1 kB\nMemAvailable:   1000 kB\n");
    assert_true(ks__topo_meminfo(root, "MemTotal") == UINT64_C(24682416) * 1024);
    assert_true(ks__topo_meminfo(root, "MemAvailable") == 1024000);
    assert_true(ks__topo_meminfo(root, "Mem") == 0);
}

static void numa_nodes_are_counted(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint32_t nodes;
    } rows[] = { { "0\n", 1 }, { "0-1\n", 2 }, { "0-3,6,8-9\n", 7 }, { "odd\n", 1 }, { "3-1\n", 1 }, { "", 1 } };
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        put("/sys/devices/system/node/online", rows[i].text);
        assert_int_equal(ks__topo_numa_nodes(root), rows[i].nodes);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_root, remove_root)

/* Nodes 0 .. n - 1, as a list such as "0-3,8" for each. */
static void put_nodes(const char *online, const char *const *lists, uint32_t n)
{
    char path[96];
    put("/sys/devices/system/node/online", online);
    for (uint32_t i = 0; i < n; i++) {
        (void)snprintf(path, sizeof path, "/sys/devices/system/node/node%u/cpulist", (unsigned)i);
        put(path, lists[i]);
    }
}

static void cores_of_a_memory_node_stand_together(void **state)
{
    (void)state;
    static const char *const odd_even[] = { "0,2,4,6\n", "1,3,5,7\n" };
    uint32_t cpus[] = { 0, 1, 2, 3, 4, 5, 6, 7 }, node[8];
    const uint32_t want[] = { 0, 2, 4, 6, 1, 3, 5, 7 };
    put_nodes("0-1\n", odd_even, 2);
    ks__topo_nodes(root, cpus, 8, node);
    for (uint32_t i = 0; i < 8; i++) assert_int_equal(node[i], i % 2);
    ks__topo_group(root, cpus, 8);
    assert_memory_equal(cpus, want, sizeof want);
}

static void workers_of_two_nodes_share_each_matrix(void **state)
{
    (void)state;
    static const char *const lists[] = { "0-3,8-11\n", "4-7,12-15\n" };
    const uint32_t cpus[] = { 0, 1, 2, 4, 5, 6, 7 };
    ks_numa m;
    uint32_t begin, end, at = 0;
    put_nodes("0-1\n", lists, 2);
    ks__numa_init(root, &m, cpus, 7);
    assert_true(m.n_nodes == 2 && m.n_workers == 7 && m.id[0] == 0 && m.id[1] == 1);
    assert_true(m.first[0] == 0 && m.first[1] == 3 && m.first[2] == 7);
    for (uint32_t w = 0; w < 7; w++) {
        uint32_t k = ks_numa_node_of(&m, w), n = 700;
        assert_int_equal(k, w >= 3);
        ks_numa_share(&m, k, n, &begin, &end);
        assert_true(n * w / 7 >= begin && n * (w + 1) / 7 <= end); /* the worker's own part of it */
    }
    for (uint32_t k = 0; k < 2; k++, at = end) { /* odd counts are covered, too */
        ks_numa_share(&m, k, 97, &begin, &end);
        assert_int_equal(begin, at);
    }
    assert_int_equal(at, 97);
}

static void four_nodes_may_have_numbers_with_gaps(void **state)
{
    (void)state;
    static const char *const lists[] = { "0-1\n", "\n", "2-3\n", "4-5\n", "6\n" };
    const uint32_t cpus[] = { 0, 1, 2, 3, 4, 5, 6 };
    ks_numa m;
    put_nodes("0-4\n", lists, 5);
    ks__numa_init(root, &m, cpus, 7);
    assert_int_equal(m.n_nodes, 4);
    assert_true(m.id[0] == 0 && m.id[1] == 2 && m.id[2] == 3 && m.id[3] == 4);
    assert_int_equal(ks_numa_node_of(&m, 6), 3);
}

static void what_makes_no_sense_is_one_node(void **state)
{
    (void)state;
    static const char *const apart[] = { "0,2\n", "1,3\n" }, *const odd[] = { "3-1\n", "x\n" };
    const uint32_t cpus[] = { 0, 1, 2, 3 };
    ks_numa m;
    uint32_t begin, end;
    ks__numa_init(root, &m, cpus, 4); /* no files at all */
    assert_int_equal(m.n_nodes, 1);
    put_nodes("0-1\n", apart, 2); /* workers that are not grouped */
    ks__numa_init(root, &m, cpus, 4);
    assert_int_equal(m.n_nodes, 1);
    put_nodes("0-1\n", odd, 2);
    ks__numa_init(root, &m, cpus, 4);
    assert_int_equal(m.n_nodes, 1);
    put_nodes("0-1\n", apart, 2);
    ks__numa_init(root, &m, cpus, 0);
    assert_int_equal(m.n_nodes, 1);
    ks__numa_init(root, &m, cpus, 1);
    ks_numa_share(&m, 0, 33, &begin, &end);
    assert_true(begin == 0 && end == 33);
}

/* The kernel may refuse (containers do): then it says so, and pages come from where the thread runs. */
static void preferring_a_node_never_fails_loudly(void **state)
{
    (void)state;
    ks_numa m = { .n_nodes = 1, .n_workers = 1, .id = { 0 }, .first = { 0, 1 } };
    if (!ks_numa_prefer(&m, 0)) print_message("set_mempolicy is refused here\n");
    m.id[0] = 1023;
    assert_false(ks_numa_prefer(&m, 0));
    m.id[0] = 5000;
    assert_false(ks_numa_prefer(&m, 0));
    ks_numa_prefer_any();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(one_thread_of_each_core_is_picked),
        TEST(no_files_mean_no_limits),
        TEST(a_v2_quota_is_rounded_down_to_whole_cpus),
        TEST(the_tightest_level_above_counts),
        TEST(a_container_sees_its_folder_as_the_mounts_root),
        TEST(v2_memory_counts_what_is_used_and_not_reclaimable),
        TEST(v1_limits_are_read_from_each_controller),
        TEST(meminfo_is_read_in_bytes),
        TEST(numa_nodes_are_counted),
        TEST(cores_of_a_memory_node_stand_together),
        TEST(workers_of_two_nodes_share_each_matrix),
        TEST(four_nodes_may_have_numbers_with_gaps),
        TEST(what_makes_no_sense_is_one_node),
        cmocka_unit_test(preferring_a_node_never_fails_loudly),
    };
    return cmocka_run_group_tests_name("topo", tests, NULL, NULL);
}
