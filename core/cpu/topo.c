/* Cores, cgroup limits and memory, from /proc and /sys.
 *
 * A file that is missing or odd means "no limit known": a machine without sysfs still runs. Cgroups: the
 * process's path (/proc/self/cgroup) is looked up below the mount (/proc/self/mountinfo), and every level
 * up to the mount counts, since the tightest limit wins. [any]
 */
#include "cpu/topo.h"
#include "base/base.h"
#include "base/file.h"
#include "cpu/cpu.h"
#include <inttypes.h>
#include <limits.h>
#include <sched.h>

#define TEXT_MAX ((size_t)1 << 20)
#define NODES_MAX 1024u /* as many as Linux has */

/* A small file below root as text without its last newline, malloc'd; NULL if it cannot be had. */
static char *slurp(const char *root, const char *path)
{
    char name[PATH_MAX], *text = NULL;
    size_t n = 0;
    int len = snprintf(name, sizeof name, "%s%s", root, path);
    if (len < 0 || (size_t)len >= sizeof name) return NULL;
    if (ks_file_read(name, TEXT_MAX, &text, &n, NULL)) return NULL;
    while (n && text[n - 1] == '\n') text[--n] = 0;
    return text;
}

/* The first number of a file; `other` where there is none ("max", -1, no file). */
static uint64_t slurp_u64(const char *root, const char *path, uint64_t other)
{
    char *text = slurp(root, path), *end;
    uint64_t v = other;
    if (text && *text >= '0' && *text <= '9') {
        v = strtoull(text, &end, 10);
        if (end == text) v = other;
    }
    free(text);
    return v;
}

uint32_t ks__topo_pick(const char *root, const uint32_t *allowed, uint32_t n, uint32_t *ret)
{
    uint32_t count = 0;
    uint32_t *cores = ks_calloc(n, sizeof *cores); /* the first sibling's number names the core */
    if (!cores) return 0;
    for (uint32_t i = 0; i < n; i++) {
        char path[96];
        (void)snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%" PRIu32 "/topology/thread_siblings_list",
                       allowed[i]); /* fits */
        cores[i] = (uint32_t)slurp_u64(root, path, allowed[i]);
        bool taken = false;
        for (uint32_t k = 0; k < i && !taken; k++) taken = cores[k] == cores[i];
        if (!taken) ret[count++] = allowed[i];
    }
    free(cores);
    return count;
}

/* ---- cgroups */

typedef struct cgroup {
    char path[PATH_MAX]; /* folder of this process, below root */
    size_t mount_bytes;  /* of it, the mount */
    bool v2;
} cgroup;

/* True if the comma list holds the word. */
static bool has_word(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = list; p; p = strchr(p, ',')) {
        p += *p == ',';
        if (!strncmp(p, word, n) && (p[n] == ',' || !p[n])) return true;
    }
    return false;
}

/* Lines are "4:memory:/path" (v1) or "0::/path" (v2). Into dst (cap); false if there is none. */
static bool own_path(const char *root, const char *controller, bool v2, char *dst, size_t cap)
{
    char *text = slurp(root, "/proc/self/cgroup"), *save = NULL;
    bool hit = false;
    for (char *line = text ? strtok_r(text, "\n", &save) : NULL; line && !hit; line = strtok_r(NULL, "\n", &save)) {
        char *list = strchr(line, ':'), *path = list ? strchr(list + 1, ':') : NULL;
        if (!path) continue;
        *list++ = *path++ = 0;
        hit = (v2 ? !*list && !strcmp(line, "0") : has_word(list, controller)) && strlen(path) < cap;
        if (hit) memcpy(dst, path, strlen(path) + 1);
    }
    free(text);
    return hit;
}

/* Columns of mountinfo: id parent device root mount options [tags] - type source super-options. */
static bool parse_mount(char *line, const char *controller, bool v2, char **ret_root, char **ret_mount)
{
    char *col[5], *save = NULL, *rest = strstr(line, " - ");
    if (!rest) return false;
    *rest = 0;
    rest += 3;
    col[0] = strtok_r(line, " ", &save);
    for (int i = 1; i < 5; i++) col[i] = col[i - 1] ? strtok_r(NULL, " ", &save) : NULL;
    char *type = strtok_r(rest, " ", &save), *source = strtok_r(NULL, " ", &save), *super = strtok_r(NULL, " ", &save);
    if (!col[4] || !type || !source || !super) return false;
    if (v2 ? strcmp(type, "cgroup2") != 0 : strcmp(type, "cgroup") != 0 || !has_word(super, controller)) return false;
    *ret_root = col[3];
    *ret_mount = col[4];
    return true;
}

static bool find_cgroup(const char *root, const char *controller, bool v2, cgroup *ret)
{
    char own[PATH_MAX / 2], *text = slurp(root, "/proc/self/mountinfo"), *save = NULL, *from, *mount;
    bool hit = false;
    if (text && own_path(root, controller, v2, own, sizeof own))
        for (char *line = strtok_r(text, "\n", &save); line && !hit; line = strtok_r(NULL, "\n", &save)) {
            if (!parse_mount(line, controller, v2, &from, &mount)) continue;
            /* A container sees its own folder as the mount's root: what is above is not visible. */
            const char *below = own;
            size_t n = strlen(from);
            if (strcmp(from, "/") != 0) below = !strncmp(own, from, n) && (own[n] == '/' || !own[n]) ? own + n : "";
            if (!strcmp(below, "/") || strstr(below, "/..")) below = "";
            int len = snprintf(ret->path, sizeof ret->path, "%s%s", mount, below);
            ret->mount_bytes = strlen(mount);
            ret->v2 = v2;
            hit = len >= 0 && (size_t)len < sizeof ret->path;
        }
    free(text);
    return hit;
}

/* Calls fn for the process's folder and each one above it, up to the mount. */
static void walk_up(const char *root, const char *controller, void (*fn)(const char *root, const cgroup *g, void *arg),
                    void *arg)
{
    for (int v2 = 0; v2 < 2; v2++) {
        cgroup g;
        if (!find_cgroup(root, controller, v2 == 1, &g)) continue;
        for (;;) {
            fn(root, &g, arg);
            char *slash = strrchr(g.path, '/');
            if (!slash || (size_t)(slash - g.path) < g.mount_bytes) break;
            *slash = 0;
        }
    }
}

static char *slurp_in(const char *root, const cgroup *g, const char *file)
{
    char path[PATH_MAX + 64];
    (void)snprintf(path, sizeof path, "%s/%s", g->path, file); /* fits */
    return slurp(root, path);
}

static uint64_t slurp_u64_in(const char *root, const cgroup *g, const char *file, uint64_t other)
{
    char path[PATH_MAX + 64];
    (void)snprintf(path, sizeof path, "%s/%s", g->path, file); /* fits */
    return slurp_u64(root, path, other);
}

static void quota_of(const char *root, const cgroup *g, void *arg)
{
    uint64_t quota = 0, period = 0;
    uint32_t *least = arg;
    if (g->v2) {
        char *text = slurp_in(root, g, "cpu.max");
        if (text && sscanf(text, "%" SCNu64 " %" SCNu64, &quota, &period) != 2) quota = 0; /* "max 100000" */
        free(text);
    } else {
        quota = slurp_u64_in(root, g, "cpu.cfs_quota_us", 0); /* -1: none */
        period = slurp_u64_in(root, g, "cpu.cfs_period_us", 0);
    }
    if (!quota || !period) return;
    /* Rounded down: a spinning thread above the quota would have all of them throttled. */
    uint64_t cpus = KS_MAX(quota / period, (uint64_t)1);
    if (cpus < *least) *least = (uint32_t)cpus;
}

uint32_t ks__topo_quota(const char *root)
{
    uint32_t least = UINT32_MAX;
    walk_up(root, "cpu", quota_of, &least);
    return least;
}

/* "name value" lines. */
static uint64_t stat_value(const char *text, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = text; p && *p; p = strchr(p, '\n'), p += p != NULL)
        if (!strncmp(p, name, n) && p[n] == ' ') return strtoull(p + n, NULL, 10);
    return 0;
}

static void memory_of(const char *root, const cgroup *g, void *arg)
{
    uint64_t *least = arg;
    uint64_t limit = slurp_u64_in(root, g, g->v2 ? "memory.max" : "memory.limit_in_bytes", UINT64_MAX);
    uint64_t used = slurp_u64_in(root, g, g->v2 ? "memory.current" : "memory.usage_in_bytes", 0);
    if (limit == UINT64_MAX) return;
    char *text = slurp_in(root, g, "memory.stat"); /* file pages not in use are given back at once */
    uint64_t cache = text ? stat_value(text, g->v2 ? "inactive_file" : "total_inactive_file") : 0;
    free(text);
    used -= KS_MIN(cache, used);
    *least = KS_MIN(*least, limit - KS_MIN(used, limit));
}

uint64_t ks__topo_memory_left(const char *root)
{
    uint64_t least = UINT64_MAX;
    walk_up(root, "memory", memory_of, &least);
    return least;
}

uint64_t ks__topo_meminfo(const char *root, const char *key)
{
    char *text = slurp(root, "/proc/meminfo"), name[64];
    uint64_t bytes = 0;
    (void)snprintf(name, sizeof name, "%s:", key); /* our own keys: fits */
    if (text) bytes = stat_value(text, name) * 1024;
    free(text);
    return bytes;
}

/* Takes the next range of a list such as "0-1,3"; false at its end, or where it makes no sense. */
static bool next_range(char **p, uint32_t *ret_first, uint32_t *ret_last)
{
    char *end;
    if (!**p) return false;
    unsigned long first = strtoul(*p, &end, 10), last = first;
    if (end == *p) return false;
    if (*end == '-') last = strtoul(end + 1, &end, 10);
    if (last < first || last >= UINT32_MAX || (*end && *end != ',')) return false;
    *p = end + (*end == ',');
    *ret_first = (uint32_t)first;
    *ret_last = (uint32_t)last;
    return true;
}

uint32_t ks__topo_numa_nodes(const char *root)
{
    char *text = slurp(root, "/sys/devices/system/node/online"), *p = text;
    uint32_t count = 0, first, last;
    while (p && next_range(&p, &first, &last))
        if (last - first < NODES_MAX) count += last - first + 1;
    free(text);
    return count ? count : 1;
}

/* Writes the node's number beside those of its CPUs. */
static void mark_node(const char *root, uint32_t node, const uint32_t *cpus, uint32_t n, uint32_t *ret_node)
{
    char path[64];
    (void)snprintf(path, sizeof path, "/sys/devices/system/node/node%" PRIu32 "/cpulist", node); /* fits */
    char *text = slurp(root, path), *p = text;
    for (uint32_t first, last; p && next_range(&p, &first, &last);)
        for (uint32_t i = 0; i < n; i++)
            if (cpus[i] >= first && cpus[i] <= last) ret_node[i] = node;
    free(text);
}

void ks__topo_nodes(const char *root, const uint32_t *cpus, uint32_t n, uint32_t *ret_node)
{
    char *text = slurp(root, "/sys/devices/system/node/online"), *p = text;
    memset(ret_node, 0, n * sizeof *ret_node);
    for (uint32_t first, last; p && next_range(&p, &first, &last);)
        for (uint32_t node = first; node <= last && node < NODES_MAX; node++) mark_node(root, node, cpus, n, ret_node);
    free(text);
}

void ks__topo_group(const char *root, uint32_t *cpus, uint32_t n)
{
    uint32_t *node = ks_calloc((size_t)n + 1, sizeof *node);
    if (!node) return; /* the order as it is does, too */
    ks__topo_nodes(root, cpus, n, node);
    for (uint32_t i = 1; i < n; i++) { /* few, and nearly always sorted already */
        uint32_t cpu = cpus[i], of = node[i], k = i;
        for (; k > 0 && node[k - 1] > of; k--) {
            cpus[k] = cpus[k - 1];
            node[k] = node[k - 1];
        }
        cpus[k] = cpu;
        node[k] = of;
    }
    free(node);
}

/* ---- The machine we run on */

/* Ascending logical CPUs of this thread's affinity, malloc'd; NULL without memory. */
static uint32_t *allowed_cpus(uint32_t *ret_n)
{
    for (int max = 1024; max <= 1 << 20; max *= 4) { /* the kernel refuses a set smaller than its own */
        cpu_set_t *set = CPU_ALLOC((size_t)max);
        size_t bytes = CPU_ALLOC_SIZE((size_t)max);
        uint32_t n = 0, *cpus = NULL;
        if (!set) return NULL;
        if (sched_getaffinity(0, bytes, set) == 0) {
            cpus = ks_calloc((size_t)CPU_COUNT_S(bytes, set), sizeof *cpus);
            for (int i = 0; cpus && i < max; i++)
                if (CPU_ISSET_S((size_t)i, bytes, set)) cpus[n++] = (uint32_t)i;
        }
        CPU_FREE(set);
        if (cpus) {
            *ret_n = n;
            return cpus;
        }
    }
    return NULL;
}

uint32_t ks_cpu_cores(uint32_t *ret_cpus, uint32_t cap)
{
    uint32_t n = 0, count = 0, *allowed = allowed_cpus(&n), *cores = n ? ks_calloc(n, sizeof *cores) : NULL;
    if (cores) count = ks__topo_pick("", allowed, n, cores);
    if (cores) ks__topo_group("", cores, count);
    count = KS_MIN(count, ks__topo_quota(""));
    count = KS_MIN(count, cap);
    if (count) memcpy(ret_cpus, cores, count * sizeof *cores);
    if (!count && cap) ret_cpus[0] = n ? allowed[0] : 0; /* one core there is, whatever the system tells */
    free(cores);
    free(allowed);
    return KS_MAX(count, 1u);
}

uint32_t ks_cpu_numa_nodes(void)
{
    return ks__topo_numa_nodes("");
}

uint64_t ks_ram_bytes(void)
{
    return ks__topo_meminfo("", "MemTotal");
}

uint64_t ks_ram_available_bytes(void)
{
    return KS_MIN(ks__topo_meminfo("", "MemAvailable"), ks__topo_memory_left(""));
}
