/* The rules of the descriptor and of the life of a plugin (ABI-). Each is called in a process of its own. */
#include "base/base.h"
#include "base/clock.h"
#include "conform.h"
#include "cpu/cpu.h"

#include <dirent.h>
#include <dlfcn.h>
#include <malloc.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- loading */

static void host_log(const ks_host *h, int32_t level, const char *msg)
{
    (void)h;
    (void)level;
    (void)msg;
}

static void *host_alloc(const ks_host *h, size_t bytes, size_t align)
{
    plug *p = h->ctx;
    void *mem = NULL;
    if (posix_memalign(&mem, KS_MAX(align, sizeof mem), bytes ? bytes : 1)) return NULL;
    p->held += malloc_usable_size(mem);
    return mem;
}

static void host_free(const ks_host *h, void *mem)
{
    plug *p = h->ctx;
    if (mem) p->held -= malloc_usable_size(mem);
    free(mem);
}

static void host_parallel(const ks_host *h, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg)
{
    (void)h;
    for (uint32_t i = 0; i < n; i++) task(arg, i);
}

static const void *host_ext(const ks_host *h, const char *id)
{
    (void)h;
    (void)id;
    return NULL;
}

bool plug_load(const conform *c, plug *p, uint64_t cpu, outcome *o)
{
    ks_err err = { 0 };
    ks_plugin d = { 0 };
    const ks_registry_opts ro = { .cpu = cpu, .n_threads = 1 };
    *p = (plug) { .so = dlopen(c->path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) };
    p->given = p->so ? dlsym(p->so, KS_PLUGIN_SYMBOL) : NULL;
    if (!p->given) {
        const char *text = dlerror();
        verdict(o, BROKEN, "%s", text ? text : "dlopen failed");
        return false;
    }
    memcpy(&d, p->given, KS_MIN((size_t)p->given->size, sizeof d));
    int (*probe)(const ks_host *h, const void *opts, ks_probe *ret, ks_err *err) = d.probe;
    if (d.size > offsetof(ks_plugin, probe)) d.probe = NULL; /* the registry would call it */
    d.size = (uint32_t)KS_MIN((size_t)d.size, sizeof d);
    if (ks_registry_open(&ro, &p->registry, &err) || ks_registry_add(p->registry, &d, c->path, &err)) {
        verdict(o, BROKEN, "%s", err.msg);
        return false;
    }
    p->entry = ks_registry_entry(p->registry, 0);
    if (p->entry->state == KS_PLUGIN_REFUSED) { /* a default of its options */
        verdict(o, BROKEN, "%s", p->entry->why);
        return false;
    }
    p->d = p->entry->desc;
    p->d.probe = probe;
    p->host.h = (ks_host) { .size = (uint32_t)sizeof p->host.h,
                            .abi_minor = KS_ABI_MINOR,
                            .ctx = p,
                            .cpu = cpu,
                            .n_threads = 1,
                            .log = host_log,
                            .alloc = host_alloc,
                            .free = host_free,
                            .parallel = host_parallel,
                            .ext = host_ext };
    memset(p->host.later, 0xa5, sizeof p->host.later);
    return true;
}

void plug_fini(plug *p)
{
    ks_registry_close(p->registry); /* nothing is open in it; NULL is fine */
}

bool plug_open(plug *p, void **ret_self, ks_err *err)
{
    *ret_self = NULL;
    if (!p->d.open) return true;
    int rc = p->d.open(&p->host.h, p->entry->opts, ret_self, err);
    err->msg[sizeof err->msg - 1] = 0;
    return rc == 0;
}

static void plug_close(const plug *p, void *self)
{
    if (p->d.close) p->d.close(self);
}

static bool elf_open(const conform *c, ks_elf *e, outcome *o)
{
    ks_err err = { 0 };
    if (!ks_elf_open(e, c->path, &err)) return true;
    verdict(o, BROKEN, "%s", err.msg);
    return false;
}

/* ---- the file */

void abi_1(const conform *c, outcome *o)
{
    ks_elf e;
    char more[200] = "";
    if (!elf_open(c, &e, o)) return;
    for (size_t i = 0; i < e.n_syms; i++) {
        const char *name = ks_elf_name(&e, &e.syms[i]);
        if (!ks_elf_is_export(&e.syms[i]) || strcmp(name, KS_PLUGIN_SYMBOL) == 0) continue;
        size_t n = strlen(more);
        (void)snprintf(more + n, sizeof more - n, "%s%s", n ? ", " : "", name);
    }
    const Elf64_Sym *s = ks_elf_find(&e, KS_PLUGIN_SYMBOL);
    if (!s)
        verdict(o, BROKEN, "it does not export " KS_PLUGIN_SYMBOL);
    else if (ELF64_ST_TYPE(s->st_info) != STT_OBJECT)
        verdict(o, BROKEN, "its " KS_PLUGIN_SYMBOL " is no data");
    else if (more[0])
        verdict(o, BROKEN, "it also exports %s: use the version script krasis-plugin.map", more);
    else
        o->verdict = PASSED;
    ks_elf_close(&e);
}

/* Undefined symbols that are in the list, or begin with its first entry if `prefix`. */
static void find_imports(const ks_elf *e, const char *const *names, size_t n, bool prefix, char *ret, size_t cap)
{
    ret[0] = 0;
    for (size_t i = 0; i < e->n_syms; i++) {
        const char *name = ks_elf_name(e, &e->syms[i]);
        if (e->syms[i].st_shndx != SHN_UNDEF) continue;
        for (size_t k = 0; k < n; k++)
            if (prefix ? strncmp(name, names[k], strlen(names[k])) == 0 : strcmp(name, names[k]) == 0) {
                size_t at = strlen(ret);
                (void)snprintf(ret + at, cap - at, "%s%s", at ? ", " : "", name);
            }
    }
}

void abi_2(const conform *c, outcome *o)
{
    static const char *const of_host[] = { "ks_", "krasis_" };
    ks_elf e;
    char found[200];
    if (!elf_open(c, &e, o)) return;
    find_imports(&e, of_host, KS_COUNT(of_host), true, found, sizeof found);
    if (found[0])
        verdict(o, BROKEN, "it needs %s: a plugin links krasis-sdk statically and gets the rest through ks_host",
                found);
    else
        o->verdict = PASSED;
    ks_elf_close(&e);
}

void abi_3(const conform *c, outcome *o)
{
    if (dlopen(c->path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) {
        o->verdict = PASSED;
        return;
    }
    const char *text = dlerror();
    const bool library = text && strstr(text, "cannot open shared object file");
    verdict(o, library ? SKIPPED : BROKEN, "%s", text ? text : "dlopen failed");
}

/* The descriptor's cpu_required, from the file. */
static bool read_required(const ks_elf *e, uint64_t *ret)
{
    const Elf64_Sym *s = ks_elf_find(e, KS_PLUGIN_SYMBOL);
    uint32_t size;
    return s && !ks_elf_read(e, s->st_value, &size, sizeof size, NULL) &&
           size >= offsetof(ks_plugin, cpu_required) + sizeof *ret &&
           !ks_elf_read(e, s->st_value + offsetof(ks_plugin, cpu_required), ret, sizeof *ret, NULL);
}

void abi_4(const conform *c, outcome *o)
{
    ks_elf e;
    uint64_t required = 0;
    if (!elf_open(c, &e, o)) return;
    uint32_t n = ks_elf_n_constructors(&e);
    const bool readable = read_required(&e, &required);
    ks_elf_close(&e);
    c->board->cpu_required = required;
    if (!readable)
        verdict(o, SKIPPED, "its descriptor cannot be read");
    else if (CONFORM_SANITIZED)
        verdict(o, SKIPPED, "a sanitizer has constructors of its own");
    else if (required && n > 1) /* one is the C runtime's */
        verdict(o, BROKEN,
                "%u constructors run when it is loaded, before anybody can test for the CPU features it needs", n - 1);
    else
        o->verdict = PASSED;
}

static void put_rows(const conform *c, const plug *p)
{
    const ks_kernels_iface *k = p->d.iface; /* the registry's copy: its rows are ks_kernel, bounded in number */
    if (p->d.kind != KS_KIND_KERNELS) return;
    c->board->n_rows = KS_MIN(k->n_kernels, CONFORM_MAX_ROWS);
    for (uint32_t i = 0; i < c->board->n_rows; i++)
        (void)snprintf(c->board->row[i], sizeof c->board->row[i], "%s", k->kernels[i].name);
}

void abi_5(const conform *c, outcome *o)
{
    PLUG(p);
    ks_elf e;
    const char *slash = strrchr(c->path, '/'), *file = slash ? slash + 1 : c->path;
    char want[48];
    if (!elf_open(c, &e, o)) return;
    const Elf64_Sym *s = ks_elf_find(&e, KS_PLUGIN_SYMBOL);
    uint64_t symbol_bytes = s ? s->st_size : 0;
    const bool is_data = s && ELF64_ST_TYPE(s->st_info) == STT_OBJECT;
    ks_elf_close(&e);
    if (!is_data) {
        verdict(o, SKIPPED, "ABI-1 is broken");
        return;
    }
    if (!plug_load(c, &p, UINT64_MAX, o)) return;
    (void)snprintf(want, sizeof want, "%.40s.so", p.d.name);
    if (p.given->size > symbol_bytes)
        verdict(o, BROKEN, "its descriptor says it has %u bytes, but the symbol has %llu", p.given->size,
                (unsigned long long)symbol_bytes);
    else if (strcmp(want, file) != 0)
        verdict(o, BROKEN, "its name is '%s', but the file is '%s': they must be equal", p.d.name, file);
    else
        o->verdict = PASSED;
    c->board->kind = p.d.kind;
    c->board->cpu_required = p.d.cpu_required;
    put_rows(c, &p);
}

/* ---- its life */

#define PROBES 3
#define PROBE_LIMIT_MS 100

void abi_7(const conform *c, outcome *o)
{
    PLUG(p);
    struct {
        ks_probe p;
        int rc;
    } answer[PROBES] = { 0 };
    uint64_t fastest = UINT64_MAX;
    if (!plug_load(c, &p, ks_cpu_features(), o)) return;
    if (!p.d.probe) {
        verdict(o, SKIPPED, "it has no probe()");
        return;
    }
    for (int i = 0; i < PROBES; i++) {
        ks_err err = { 0 };
        answer[i].p.size = (uint32_t)sizeof answer[i].p;
        uint64_t t0 = ks_now_ns();
        answer[i].rc = p.d.probe(&p.host.h, p.entry->opts, &answer[i].p, &err);
        fastest = KS_MIN(fastest, ks_now_ns() - t0); /* a busy machine is not the plugin's fault */
    }
    for (int i = 1; i < PROBES; i++)
        if (answer[i].rc != answer[0].rc || answer[i].p.score != answer[0].p.score ||
            answer[i].p.mem_total_bytes != answer[0].p.mem_total_bytes) {
            verdict(o, BROKEN, "its answer %d differs from the first: code %d and %d, score %d and %d", i + 1,
                    answer[i].rc, answer[0].rc, answer[i].p.score, answer[0].p.score);
            return;
        }
    if (fastest / 1000000 > PROBE_LIMIT_MS)
        verdict(o, BROKEN, "it takes %llu ms at its fastest: at most %d are allowed",
                (unsigned long long)(fastest / 1000000), PROBE_LIMIT_MS);
    else
        o->verdict = PASSED;
}

static uint32_t count_entries(const char *dir)
{
    uint32_t n = 0;
    DIR *d = opendir(dir);
    if (!d) return 0; /* the same before and after: the comparison says nothing then */
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

/* One life; false with the outcome if something is left. */
static bool live_once(plug *p, uint32_t fds[2], int round, outcome *o)
{
    ks_err err = { 0 };
    void *self;
    bool opened = plug_open(p, &self, &err);
    if (opened) plug_close(p, self);
    const char *after = opened ? "close()" : "a failed open()";
    fds[0] = count_entries("/proc/self/fd");
    fds[1] = count_entries("/proc/self/task");
    if (!p->held) return true;
    verdict(o, BROKEN, "%zu bytes of host memory are left after %s number %d", p->held, after, round + 1);
    return false;
}

void abi_8(const conform *c, outcome *o)
{
    PLUG(p);
    uint32_t first[2], second[2];
    if (!plug_load(c, &p, ks_cpu_features(), o)) return;
    if (!p.d.open && !p.d.close) {
        verdict(o, SKIPPED, "it has neither open() nor close()");
        return;
    }
    if (!live_once(&p, first, 0, o) || !live_once(&p, second, 1, o))
        return; /* libraries may keep things of the first */
    plug_close(&p, NULL);
    if (second[0] > first[0])
        verdict(o, BROKEN, "a second open() and close() leaves %u files open", second[0] - first[0]);
    else if (second[1] > first[1])
        verdict(o, BROKEN, "a second open() and close() leaves %u threads", second[1] - first[1]);
    else
        o->verdict = PASSED;
}

void abi_9(const conform *c, outcome *o)
{
    static const char *const unknown[] = { "krasis.no-such-extension/1", "", "krasis.numa/1 and more" };
    PLUG(p);
    void *self;
    ks_err err = { 0 };
    if (!plug_load(c, &p, ks_cpu_features(), o)) return;
    if (!p.d.ext || !plug_open(&p, &self, &err)) {
        verdict(o, SKIPPED, "%s", p.d.ext ? err.msg : "it has no ext()");
        return;
    }
    o->verdict = PASSED;
    for (size_t i = 0; i < KS_COUNT(unknown); i++)
        if (p.d.ext(self, unknown[i])) verdict(o, BROKEN, "it has the extension '%s'", unknown[i]);
    plug_close(&p, self);
}

/* ---- failing */

static bool is_proper(int rc, const ks_err *err, const char *what, outcome *o)
{
    if (rc >= 0)
        verdict(o, BROKEN, "%s fails with the code %d: it must be negative", what, rc);
    else if (!memchr(err->msg, 0, sizeof err->msg) || !err->msg[0])
        verdict(o, BROKEN, "%s fails with code %d (%s) and no message", what, rc, ks_error_text(rc));
    else if (strchr(err->msg, '\n'))
        verdict(o, BROKEN, "%s fails with a message of more than one line", what);
    else
        return true;
    return false;
}

void abi_10(const conform *c, outcome *o)
{
    PLUG(p);
    void *self = NULL, *file = NULL;
    ks_err err = { 0 };
    ks_probe ret = { .size = (uint32_t)sizeof ret };
    if (!plug_load(c, &p, ks_cpu_features(), o)) return;
    verdict(o, SKIPPED, "nothing of it fails here");
    int rc = p.d.probe ? p.d.probe(&p.host.h, p.entry->opts, &ret, &err) : 0;
    if (rc) {
        if (is_proper(rc, &err, "probe()", o)) o->verdict = PASSED;
        return;
    }
    rc = p.d.open ? p.d.open(&p.host.h, p.entry->opts, &self, &err) : 0;
    if (rc) {
        if (is_proper(rc, &err, "open()", o)) o->verdict = PASSED;
        return;
    }
    if (p.d.kind == KS_KIND_LOADER) {
        const ks_loader_iface *l = p.d.iface;
        static const char nowhere[] = "/nonexistent/file";
        rc = l->open(self, nowhere, &file, &err);
        if (rc == 0)
            verdict(o, BROKEN, "it opens '%s', which does not exist", nowhere);
        else if (is_proper(rc, &err, "opening a file that does not exist", o) &&
                 l->open(self, nowhere, &file, NULL) < 0)
            o->verdict = PASSED; /* err may be NULL */
    }
    plug_close(&p, self);
}

void abi_11(const conform *c, outcome *o)
{
    /* vprintf and friends to a file or a string are fine; these end the process or reach its output and state. */
    static const char *const forbidden[] = { "exit",          "_exit", "_Exit",        "quick_exit", "abort",
                                             "__assert_fail", "puts",  "printf",       "putchar",    "perror",
                                             "setlocale",     "chdir", "fchdir",       "signal",     "system",
                                             "fork",          "umask", "__printf_chk", "vprintf",    "atexit" };
    ks_elf e;
    PLUG(p);
    char found[200];
    ks_err err = { 0 };
    void *self;
    struct stat st;
    if (!elf_open(c, &e, o)) return;
    find_imports(&e, forbidden, KS_COUNT(forbidden), false, found, sizeof found);
    ks_elf_close(&e);
    if (found[0]) {
        verdict(o, BROKEN, "it calls %s", found);
        return;
    }
    if (!plug_load(c, &p, ks_cpu_features(), o)) return;
    ks_probe ret = { .size = (uint32_t)sizeof ret };
    if (p.d.probe) (void)p.d.probe(&p.host.h, p.entry->opts, &ret, &err); /* what it answers is ABI-7's and 10's */
    if (plug_open(&p, &self, &err)) plug_close(&p, self);
    (void)fflush(NULL);
    if (c->output_fd < 0 || fstat(c->output_fd, &st))
        verdict(o, SKIPPED, "its output is not caught in this mode");
    else if (st.st_size)
        verdict(o, BROKEN, "it wrote %lld bytes to the process's output: plugins log through ks_host",
                (long long)st.st_size);
    else
        o->verdict = PASSED;
}

/* ---- versions */

/* Does the host take the plugin's descriptor with this `size`? Bytes beyond the plugin's own are garbage. */
static bool takes_size(const conform *c, const plug *p, uint32_t size, outcome *o)
{
    _Alignas(ks_plugin) static uint8_t copy[sizeof(ks_plugin) + 64];
    const ks_registry_opts ro = { .cpu = ks_cpu_features(), .n_threads = 1 };
    ks_registry *r = NULL;
    ks_plugin d = { 0 };
    ks_err err = { 0 };
    memset(copy, 0xa5, sizeof copy);
    memcpy(&d, p->given, KS_MIN((size_t)p->given->size, sizeof d));
    d.size = size;
    if (size > offsetof(ks_plugin, probe)) d.probe = NULL;
    memcpy(copy, &d, KS_MIN((size_t)size, sizeof d));
    bool good =
        !ks_registry_open(&ro, &r, &err) && !ks_registry_add(r, (const ks_plugin *)(const void *)copy, c->path, &err);
    if (!good) verdict(o, BROKEN, "with a descriptor of %u bytes: %s", size, err.msg);
    ks_registry_close(r);
    return good;
}

void abi_12(const conform *c, outcome *o)
{
    PLUG(p);
    struct {
        ks_probe p;
        uint8_t later[64];
    } now = { .p.size = (uint32_t)sizeof now.p }, then;
    ks_err err = { 0 };
    void *self;
    bool written = false;
    if (!plug_load(c, &p, ks_cpu_features(), o)) return;
    if (!takes_size(c, &p, (uint32_t)(offsetof(ks_plugin, iface) + sizeof(void *)), o) ||
        !takes_size(c, &p, (uint32_t)sizeof(ks_plugin) + 64, o))
        return;
    memset(now.later, 0xa5, sizeof now.later);
    then = now;
    int rc = p.d.probe ? p.d.probe(&p.host.h, p.entry->opts, &now.p, &err) : 0;
    bool opened = plug_open(&p, &self, &err);
    if (opened) plug_close(&p, self);
    p.host.h.size += (uint32_t)sizeof p.host.later; /* from here on the host is a newer one */
    p.host.h.abi_minor++;
    err.msg[0] = 0;
    int later = p.d.probe ? p.d.probe(&p.host.h, p.entry->opts, &then.p, &err) : 0;
    bool opened_later = plug_open(&p, &self, &err);
    if (opened_later) plug_close(&p, self);
    for (size_t i = 0; i < sizeof now.later; i++) written |= now.later[i] != 0xa5 || then.later[i] != 0xa5;
    if (later != rc)
        verdict(o, BROKEN, "probe() gives %d with a newer host, %d with this one: %.200s", later, rc, err.msg);
    else if (opened_later != opened)
        verdict(o, BROKEN, "open() behaves differently with a newer host: %.200s", err.msg);
    else if (written)
        verdict(o, BROKEN, "probe() writes beyond the size of its result");
    else
        o->verdict = PASSED;
}
