/* The rules of each kind: kernels (KRN-), loaders (LDR-), devices (DEV-), frontends (FE-). Each is called in a process
 * of its own. */
#include "base/base.h"
#include "base/file.h"
#include "conform.h"
#include "cpu/cpu.h"
#include "ks_kernel_suite.h"
#include "ref/ref.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- KRN-4: what a kernel does beside computing. State of this file because kernels and malloc have no argument for
 * it. One kernel runs at a time. */

static struct {
    ks_kernel_fn fn;
    volatile bool inside;
    volatile uint64_t allocations;
} watch;

static void watched(const void *args, uint32_t begin, uint32_t end, void *scratch)
{
    watch.inside = true;
    watch.fn(args, begin, end, scratch);
    watch.inside = false; /* after a fault the suite jumps over this: nothing is concluded from the count then */
}

#if !CONFORM_SANITIZED && defined(__GLIBC__)
#define WATCH_MALLOC 1
/* The plugin's allocations come here, since the program's symbols are found before the C library's. */
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t align, size_t n);

__attribute__((visibility("default"))) void *malloc(size_t n)
{
    watch.allocations += watch.inside;
    return __libc_malloc(n);
}

__attribute__((visibility("default"))) void *calloc(size_t n, size_t size)
{
    watch.allocations += watch.inside;
    return __libc_calloc(n, size);
}

__attribute__((visibility("default"))) void *realloc(void *p, size_t n)
{
    watch.allocations += watch.inside;
    return __libc_realloc(p, n);
}

__attribute__((visibility("default"))) void *aligned_alloc(size_t align, size_t n)
{
    watch.allocations += watch.inside;
    return __libc_memalign(align, n);
}
#else
#define WATCH_MALLOC 0
#endif

/* The plugin's writable memory: what is left of its segments when those that become read-only are taken away. */
typedef struct snapshot {
    uintptr_t base;
    struct {
        const uint8_t *p;
        uint8_t *copy;
        size_t n;
    } part[8];
    uint32_t n_parts;
    bool no_memory;
} snapshot;

static int take_parts(struct dl_phdr_info *info, size_t size, void *arg)
{
    snapshot *s = arg;
    uintptr_t relro = 0, relro_end = 0;
    (void)size;
    if (info->dlpi_addr != s->base) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_GNU_RELRO) {
            relro = s->base + info->dlpi_phdr[i].p_vaddr;
            relro_end = relro + info->dlpi_phdr[i].p_memsz;
        }
    for (int i = 0; i < info->dlpi_phnum && s->n_parts < KS_COUNT(s->part); i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        uintptr_t from = s->base + h->p_vaddr, to = from + h->p_memsz;
        if (h->p_type != PT_LOAD || !(h->p_flags & PF_W)) continue;
        if (from >= relro && from < relro_end) from = KS_MIN(relro_end, to); /* it comes first in its segment */
        if (from == to) continue;
        uint8_t *copy = ks_calloc(to - from, 1);
        if (copy) memcpy(copy, (const void *)from, to - from);
        s->no_memory |= !copy;
        s->part[s->n_parts].p = (const uint8_t *)from;
        s->part[s->n_parts].copy = copy;
        s->part[s->n_parts++].n = to - from;
    }
    return 1;
}

static bool snapshot_take(snapshot *s, void *so)
{
    struct link_map *map = NULL;
    *s = (snapshot) { 0 };
    if (dlinfo(so, RTLD_DI_LINKMAP, &map) != 0) return false;
    s->base = map->l_addr;
    (void)dl_iterate_phdr(take_parts, s); /* returns what take_parts does */
    return !s->no_memory;
}

static void snapshot_free(snapshot *s)
{
    for (uint32_t i = 0; i < s->n_parts; i++) free(s->part[i].copy);
    s->n_parts = 0;
}

/* Bytes of it that changed. */
static size_t snapshot_changes(const snapshot *s)
{
    size_t n = 0;
    for (uint32_t i = 0; i < s->n_parts; i++)
        for (size_t k = 0; k < s->part[i].n; k++) n += s->part[i].p[k] != s->part[i].copy[k];
    return n;
}

const ks_kernel *krn_reference(const ks_kernel *row)
{
    const ks_kernels_iface *k = ks_ref_plugin.iface;
    for (uint32_t i = 0; i < k->n_kernels; i++) {
        const ks_kernel *r = &k->kernels[i];
        if (r->op == row->op && r->wtype == row->wtype && r->xtype == row->xtype && r->layout == row->layout) return r;
    }
    return NULL;
}

static void skip_rest(outcome *o, const char *why)
{
    for (uint32_t i = 0; i < CONFORM_RULES; i++)
        if (o[i].verdict == NOT_REACHED) verdict(&o[i], SKIPPED, "%s", why);
}

static void judge_state(const snapshot *s, outcome *o)
{
    size_t changed = snapshot_changes(s);
    if (changed)
        verdict(o, BROKEN, "it changed %zu bytes of the plugin's static memory", changed);
    else if (watch.allocations)
        verdict(o, BROKEN, "it allocated memory %llu times", (unsigned long long)watch.allocations);
    else
        o->verdict = PASSED;
}

void krn_row(const conform *c, uint32_t index, outcome *o)
{
    PLUG(p);
    snapshot before = { 0 };
    char why[400], names[200];
    if (!plug_load(c, &p, ks_cpu_features(), o)) return;
    const ks_kernels_iface *k = p.d.iface;
    ks_kernel row = k->kernels[index];
    const ks_kernel *ref = krn_reference(&row);
    uint64_t lacks = row.cpu_required & ~ks_cpu_features();
    if (lacks) {
        (void)snprintf(why, sizeof why, "this CPU lacks %s", ks_cpu_names(lacks, names, sizeof names));
        skip_rest(o, why);
        return;
    }
    if (!ref) {
        skip_rest(o, "the reference has no row of this op and these types");
        return;
    }
    /* Under a sanitizer the plugin's segments hold red zones, which nobody may read, and state that is not the
     * plugin's. */
    if (!CONFORM_SANITIZED && !snapshot_take(&before, p.so)) {
        skip_rest(o, "out of memory for a copy of the plugin's static memory");
        snapshot_free(&before);
        return;
    }
    watch.fn = row.fn;
    row.fn = watched;
    int rc = ks_kernel_suite_run(&row, ref, c->seed, why, sizeof why);
    watch.inside = false;
    for (uint32_t i = 0; i < 3 && rc == 0; i++) o[i].verdict = PASSED;
    if (rc > 0) verdict(&o[rc - 1], BROKEN, "%s", why);
    if (rc == 0 && !CONFORM_SANITIZED) judge_state(&before, &o[3]);
    skip_rest(o, rc < 0 ? why : rc > 0 ? "not reached" : "a sanitizer keeps state of its own");
    snapshot_free(&before);
}

/* ---- LDR-1 */

#define GARBAGE_FILES 200u
#define MUTATIONS 2000u
#define MAX_SAMPLE ((size_t)4 << 20)

static uint64_t next_random(uint64_t *s)
{
    uint64_t z = *s += UINT64_C(0x9e3779b97f4a7c15); /* splitmix64 */
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* A file in memory, under a path that can be opened. */
typedef struct victim {
    int fd;
    char path[64];
} victim;

static bool victim_write(const victim *v, const uint8_t *p, size_t n)
{
    return ftruncate(v->fd, 0) == 0 && pwrite(v->fd, p, n, 0) == (ssize_t)n;
}

/* Reads all that the loader offers. A failure is fine, as long as it comes back. */
static void read_all(const ks_loader_iface *l, void *file)
{
    static uint8_t dst[4096];
    for (uint64_t i = 0; i < 100000; i++) {
        ks_tensor t = { .size = (uint32_t)sizeof t };
        ks_err err = { 0 };
        if (l->tensor(file, i, &t, &err)) return;
        size_t n = (size_t)KS_MIN(t.bytes, sizeof dst);
        (void)l->read(file, i, 0, dst, n, &err); /* any answer will do */
        (void)l->read(file, i, t.bytes - n, dst, n, &err);
        (void)l->read(file, i, t.bytes, dst, 1, &err);
        (void)l->read(file, i, UINT64_MAX, dst, sizeof dst, &err);
    }
}

/* One broken file through sniff, open, read and close; false with the outcome if an answer is improper. */
static bool feed(const ks_loader_iface *l, void *self, const victim *v, const uint8_t *p, size_t n, outcome *o)
{
    void *file = NULL;
    ks_err err = { 0 };
    if (!victim_write(v, p, n)) {
        verdict(o, SKIPPED, "no memory for a test file");
        return false;
    }
    int rc = l->sniff(self, v->path, p, KS_MIN(n, 4096));
    if (rc != 0 && rc != 1) {
        verdict(o, BROKEN, "sniff() answers %d to a file of %zu bytes: it must be 0 or 1", rc, n);
        return false;
    }
    rc = l->open(self, v->path, &file, &err);
    if (rc > 0) {
        verdict(o, BROKEN, "open() answers %d to a file of %zu bytes: it must be 0 or negative", rc, n);
        return false;
    }
    if (rc == 0) {
        read_all(l, file);
        l->close(file);
    }
    return true;
}

static bool feed_garbage(const conform *c, const ks_loader_iface *l, void *self, const victim *v, outcome *o)
{
    static uint8_t bytes[4096];
    uint64_t rng = c->seed;
    for (uint32_t i = 0; i < GARBAGE_FILES; i++) {
        size_t n = i == 0 ? 0 : (size_t)(next_random(&rng) % sizeof bytes);
        uint8_t mask = i % 3 == 0 ? 0xff : i % 3 == 1 ? 0x7f : 0x0f; /* bytes, text, small numbers */
        for (size_t k = 0; k < n; k++) bytes[k] = (uint8_t)next_random(&rng) & mask;
        if (!feed(l, self, v, bytes, n, o)) return false;
    }
    return true;
}

static bool feed_mutations(const conform *c, const ks_loader_iface *l, void *self, const victim *v, outcome *o)
{
    char *good = NULL;
    size_t n = 0;
    ks_err err = { 0 };
    uint64_t rng = c->seed ^ 1;
    if (ks_file_read(c->sample, MAX_SAMPLE, &good, &n, &err)) {
        verdict(o, SKIPPED, "%s", err.msg);
        return false;
    }
    uint8_t *bad = ks_calloc(n + 1, 1);
    bool fine = bad != NULL;
    if (!bad) verdict(o, SKIPPED, "out of memory");
    for (uint32_t i = 0; fine && i < MUTATIONS; i++) {
        memcpy(bad, good, n);
        for (uint64_t k = next_random(&rng) % 8; k < 8 && n; k++) { /* the head is where the lengths are */
            size_t at = (size_t)(next_random(&rng) % (next_random(&rng) % 2 ? n : KS_MIN(n, 1024)));
            bad[at] = (uint8_t)next_random(&rng);
        }
        fine = feed(l, self, v, bad, i % 4 ? n : (size_t)(next_random(&rng) % (n + 1)), o);
    }
    free(bad);
    free(good);
    return fine;
}

void ldr_1(const conform *c, outcome *o)
{
    PLUG(p);
    void *self;
    ks_err err = { 0 };
    victim v = { .fd = memfd_create("victim", MFD_CLOEXEC) };
    if (!plug_load(c, &p, ks_cpu_features(), o)) return;
    if (v.fd < 0 || !plug_open(&p, &self, &err)) {
        verdict(o, SKIPPED, "%s", v.fd < 0 ? "no memory for a test file" : err.msg);
        return;
    }
    (void)snprintf(v.path, sizeof v.path, "/proc/self/fd/%d", v.fd);
    const ks_loader_iface *l = p.d.iface;
    l->close(NULL);
    if (feed_garbage(c, l, self, &v, o) && (!c->sample || feed_mutations(c, l, self, &v, o))) o->verdict = PASSED;
    if (p.d.close) p.d.close(self);
    close(v.fd);
}

/* ---- DEV-1, FE-1 */

#define MAX_DEVICES 1024u

void dev_1(const conform *c, outcome *o)
{
    PLUG(p);
    void *self;
    ks_err err = { 0 };
    int rc = 0;
    uint32_t i = 0;
    if (!plug_load(c, &p, ks_cpu_features(), o)) return;
    if (!plug_open(&p, &self, &err)) {
        verdict(o, SKIPPED, "%s", err.msg);
        return;
    }
    const ks_device_iface *d = p.d.iface;
    for (; i < MAX_DEVICES; i++) {
        ks_device_info info = { .size = (uint32_t)sizeof info };
        if ((rc = d->list(self, i, &info, &err))) break;
        if (info.name[0] && memchr(info.name, 0, sizeof info.name)) continue;
        verdict(o, BROKEN, "device %u has no proper name", i);
        return;
    }
    if (rc != KS_E_NOTFOUND)
        verdict(o, BROKEN, "after %u devices list() answers %d: the end is KS_E_NOTFOUND", i, rc);
    else
        o->verdict = PASSED;
    if (p.d.close) p.d.close(self);
}

void fe_1(const conform *c, outcome *o)
{
    PLUG(p);
    void *self;
    ks_err err = { 0 };
    if (!plug_load(c, &p, ks_cpu_features(), o)) return;
    if (!plug_open(&p, &self, &err)) {
        verdict(o, SKIPPED, "%s", err.msg);
        return;
    }
    const ks_frontend_iface *f = p.d.iface;
    f->stop(self);
    f->stop(self);
    if (p.d.close) p.d.close(self);
    o->verdict = PASSED;
}
