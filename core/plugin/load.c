/* Opening a plugin: the file is read (elf.c) before the dynamic linker sees it, then its descriptor is held against the
 * rules of the SDK (docs/plugin-abi.md). No function of the plugin is called here. [main] */
#include "base/base.h"
#include "cpu/cpu.h"
#include "plugin/elf.h"
#include "plugin/impl.h"
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

static void say(ks_entry *e, const char *fmt, va_list ap)
{
    (void)vsnprintf(e->pub.why, sizeof e->pub.why, fmt, ap); /* cut off is fine: it is for people */
    for (char *p = e->pub.why; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = ' ';
}

void ks__say(ks_entry *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say(e, fmt, ap);
    va_end(ap);
}

void ks__refuse(ks_entry *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say(e, fmt, ap);
    va_end(ap);
    e->pub.state = KS_PLUGIN_REFUSED;
}

/* A descriptor may end after its interface: the functions behind it are optional. */
#define LEAST_DESC (offsetof(ks_plugin, iface) + sizeof(void *))

/* ---- the file */

static int check_owner(const struct stat *st, const char *what, ks_err *err)
{
    if (st->st_mode & S_IWOTH) return ks_fail(err, KS_E_STATE, "%s may be written by everybody: chmod o-w", what);
    if (st->st_uid != 0 && st->st_uid != geteuid())
        return ks_fail(err, KS_E_STATE, "%s belongs to user %u, neither to root nor to you", what,
                       (unsigned)st->st_uid);
    return 0;
}

static int check_folder(const char *path, ks_err *err)
{
    char dir[PATH_MAX];
    struct stat st;
    (void)snprintf(dir, sizeof dir, "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash) slash[slash == dir] = 0;
    if (stat(slash ? dir : ".", &st))
        return ks_fail(err, KS_E_IO, "its folder cannot be examined: %s", strerror(errno));
    return check_owner(&st, "its folder", err);
}

/* Whoever may write the file, or put another in its place, runs as us. A link has two places. */
static int check_place(const char *path, ks_err *err)
{
    char real[PATH_MAX];
    struct stat st;
    if (stat(path, &st) || !realpath(path, real))
        return ks_fail(err, KS_E_IO, "it cannot be examined: %s", strerror(errno));
    int rc = check_owner(&st, "the file", err);
    if (rc || (rc = check_folder(path, err))) return rc;
    return check_folder(real, err);
}

static int explain_no_symbol(const ks_elf *e, ks_err *err)
{
    for (size_t i = 0; i < e->n_syms; i++) {
        uint32_t major;
        if (ks_elf_is_export(&e->syms[i]) && sscanf(ks_elf_name(e, &e->syms[i]), "krasis_plugin_v%3u", &major) == 1)
            return ks_fail(err, KS_E_UNSUPPORTED,
                           "it is built for plugin ABI %u, this program speaks %d: build it against this version's SDK",
                           major, KS_ABI_MAJOR);
    }
    return ks_fail(err, KS_E_FORMAT, "it does not export '" KS_PLUGIN_SYMBOL "': it is no krasis plugin");
}

static int check_size(uint32_t size, ks_err *err)
{
    if (size >= LEAST_DESC && size <= 65536) return 0;
    return ks_fail(err, KS_E_FORMAT, "its descriptor says it has %u bytes: allowed is %zu to 65536", size, LEAST_DESC);
}

static int check_cpu(uint64_t required, uint64_t cpu, ks_err *err)
{
    uint64_t known = 0, lacks = required & ~cpu;
    char names[200];
#define KNOWN(name, bit, text) known |= KS_CPU(name);
    KS_CPU_MAP(KNOWN)
#undef KNOWN
    if (!lacks) return 0;
    if (lacks & ~known)
        return ks_fail(err, KS_E_UNSUPPORTED,
                       "it needs a CPU feature that this version does not know (bits %#llx): update krasis",
                       (unsigned long long)(lacks & ~known));
    return ks_fail(err, KS_E_UNSUPPORTED, "this CPU lacks %s", ks_cpu_names(lacks, names, sizeof names));
}

/* The numbers of the descriptor that decide whether the file may be loaded at all, read from the file: loading it would
 * already run its constructors, on a CPU that may lack their instructions. */
static int check_head(ks_entry *e, const ks_elf *f, ks_err *err)
{
    ks_plugin d; /* numbers only: pointers are not relocated */
    uint32_t size;
    const Elf64_Sym *s = ks_elf_find(f, KS_PLUGIN_SYMBOL);
    if (!s) return explain_no_symbol(f, err);
    if (ELF64_ST_TYPE(s->st_info) != STT_OBJECT)
        return ks_fail(err, KS_E_FORMAT, "its '" KS_PLUGIN_SYMBOL "' is no data: it must be a constant ks_plugin");
    int rc = ks_elf_read(f, s->st_value, &size, sizeof size, err);
    if (rc || (rc = check_size(size, err))) return rc;
    if (size > s->st_size)
        return ks_fail(err, KS_E_FORMAT, "its descriptor says it has %u bytes, but the symbol has %llu", size,
                       (unsigned long long)s->st_size);
    if ((rc = ks_elf_read(f, s->st_value, &d, LEAST_DESC, err))) return rc;
    e->pub.desc.kind = d.kind; /* for the list, if it goes no further */
    return check_cpu(d.cpu_required, e->registry->o.cpu, err);
}

static int check_file(ks_entry *e, ks_err *err)
{
    ks_elf f;
    int rc = check_place(e->path, err);
    if (rc || (rc = ks_elf_open(&f, e->path, err))) return rc;
    rc = check_head(e, &f, err);
    ks_elf_close(&f);
    return rc;
}

/* ---- the descriptor */

static bool name_ok(const char *s)
{
    size_t n = strlen(s);
    if (n < 2 || n > 31) return false;
    for (size_t i = 0; i < n; i++)
        if (!islower((unsigned char)s[i]) && !isdigit((unsigned char)s[i]) && s[i] != '-') return false;
    return true;
}

/* One line of at most `cap` characters that may be printed: it goes into tables and logs. */
static bool text_ok(const char *s, size_t cap)
{
    if (!s || !*s || strnlen(s, cap + 1) > cap) return false;
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f) return false;
    return true;
}

static bool key_ok(const char *s)
{
    return text_ok(s, 63) && strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == strlen(s);
}

static int take_kernels(ks_entry *e, ks_err *err)
{
    ks_kernels_iface *k = &e->iface.kernels;
    const size_t least = offsetof(ks_kernel, fn) + sizeof(ks_kernel_fn);
    if (k->n_kernels == 0 || k->n_kernels > KS_MAX_KERNELS || !k->kernels)
        return ks_fail(err, KS_E_FORMAT, "it offers %u kernel rows: allowed is 1 to %u", k->n_kernels, KS_MAX_KERNELS);
    if (k->kernel_size < least || k->kernel_size > 4096)
        return ks_fail(err, KS_E_FORMAT, "kernel_size is %u: at least %zu is needed", k->kernel_size, least);
    if (!(e->rows = ks_calloc(k->n_kernels, sizeof *e->rows)))
        return ks_fail(err, KS_E_NOMEM, "out of memory for %u kernel rows", k->n_kernels);
    for (uint32_t i = 0; i < k->n_kernels; i++) {
        memcpy(&e->rows[i], (const char *)k->kernels + (size_t)i * k->kernel_size,
               KS_MIN(sizeof *e->rows, (size_t)k->kernel_size));
        if (!e->rows[i].fn) return ks_fail(err, KS_E_FORMAT, "kernel row %u has no function", i);
        if (!text_ok(e->rows[i].name, 63))
            return ks_fail(err, KS_E_FORMAT, "kernel row %u has no name of 1 to 63 characters", i);
    }
    k->kernels = e->rows;
    k->kernel_size = (uint32_t)sizeof *e->rows;
    return 0;
}

static int need(bool there, const char *kind, const char *fn, ks_err *err)
{
    return there ? 0 : ks_fail(err, KS_E_FORMAT, "it is a %s but its interface has no %s()", kind, fn);
}

static int take_iface(ks_entry *e, ks_err *err)
{
    static const size_t sizes[] = { [KS_KIND_KERNELS] = sizeof(ks_kernels_iface),
                                    [KS_KIND_DEVICE] = sizeof(ks_device_iface),
                                    [KS_KIND_LOADER] = sizeof(ks_loader_iface),
                                    [KS_KIND_FRONTEND] = sizeof(ks_frontend_iface) };
    const ks_plugin *d = &e->pub.desc;
    uint32_t size;
    if (d->kind == 0 || d->kind >= KS_COUNT(sizes))
        return ks_fail(err, KS_E_UNSUPPORTED, "its kind is %u, which this program does not know", d->kind);
    if (!d->iface) return ks_fail(err, KS_E_FORMAT, "its descriptor has no interface");
    memcpy(&size, d->iface, sizeof size);
    if (size < 2 * sizeof(uint32_t) || size > 65536)
        return ks_fail(err, KS_E_FORMAT, "its interface says it has %u bytes: allowed is 8 to 65536", size);
    memcpy(&e->iface, d->iface, KS_MIN((size_t)size, sizes[d->kind]));
    e->pub.desc.iface = &e->iface;
    int rc = 0;
    if (d->kind == KS_KIND_KERNELS) return take_kernels(e, err);
    if (d->kind == KS_KIND_DEVICE) {
        const ks_device_iface *f = &e->iface.device;
        if (!(rc = need(f->list, "device", "list", err)) && !(rc = need(f->open, "device", "open", err)) &&
            !(rc = need(f->close, "device", "close", err)) && !(rc = need(f->lower, "device", "lower", err)) &&
            !(rc = need(f->bind, "device", "bind", err)))
            rc = need(f->run, "device", "run", err);
    } else if (d->kind == KS_KIND_LOADER) {
        const ks_loader_iface *f = &e->iface.loader;
        if (!(rc = need(f->sniff, "loader", "sniff", err)) && !(rc = need(f->open, "loader", "open", err)) &&
            !(rc = need(f->close, "loader", "close", err)) && !(rc = need(f->tensor, "loader", "tensor", err)))
            rc = need(f->read, "loader", "read", err);
    } else {
        const ks_frontend_iface *f = &e->iface.frontend;
        if (!(rc = need(f->start, "frontend", "start", err))) rc = need(f->stop, "frontend", "stop", err);
    }
    return rc;
}

static int take_option(const ks_plugin *d, ks_option *o, uint32_t i, ks_err *err)
{
    static const uint32_t field[] = {
        [KS_OPT_BOOL] = 4, [KS_OPT_INT] = 8, [KS_OPT_FLOAT] = 8, [KS_OPT_STR] = sizeof(char *)
    };
    if (!key_ok(o->key) || !o->dflt || !text_ok(o->help, 400))
        return ks_fail(err, KS_E_FORMAT, "option %u has no proper key, default or help", i);
    if (o->type == 0 || o->type >= KS_COUNT(field))
        return ks_fail(err, KS_E_FORMAT, "option '%s' has the unknown type %u", o->key, o->type);
    if (o->offset > d->opts_bytes || field[o->type] > d->opts_bytes - o->offset || o->offset % field[o->type])
        return ks_fail(err, KS_E_FORMAT, "option '%s' lies at byte %u of an options struct of %u", o->key, o->offset,
                       d->opts_bytes);
    if (!(o->min <= o->max))
        return ks_fail(err, KS_E_FORMAT, "option '%s' has the bounds %g to %g", o->key, o->min, o->max);
    return 0;
}

static int take_options(ks_entry *e, ks_err *err)
{
    ks_plugin *d = &e->pub.desc;
    const size_t least = offsetof(ks_option, help) + sizeof(char *);
    if (d->opts_bytes > KS_MAX_OPTS_BYTES)
        return ks_fail(err, KS_E_FORMAT, "its options struct has %u bytes: at most %u are allowed", d->opts_bytes,
                       KS_MAX_OPTS_BYTES);
    if (d->n_options == 0) return 0;
    if (d->n_options > KS_MAX_OPTIONS || !d->options || d->option_size < least || d->option_size > 4096)
        return ks_fail(err, KS_E_FORMAT,
                       "its option table is broken: %u options (at most %u) of %u bytes (%zu to 4096)", d->n_options,
                       KS_MAX_OPTIONS, d->option_size, least);
    if (!(e->options = ks_calloc(d->n_options, sizeof *e->options)))
        return ks_fail(err, KS_E_NOMEM, "out of memory for its options");
    for (uint32_t i = 0; i < d->n_options; i++) {
        ks_option *o = &e->options[i];
        memcpy(o, (const char *)d->options + (size_t)i * d->option_size, KS_MIN(sizeof *o, (size_t)d->option_size));
        int rc = take_option(d, o, i, err);
        if (rc) return rc;
        for (uint32_t k = 0; k < i; k++)
            if (strcmp(e->options[k].key, o->key) == 0)
                return ks_fail(err, KS_E_FORMAT, "option '%s' is there twice", o->key);
    }
    d->options = e->options;
    d->option_size = (uint32_t)sizeof *e->options;
    return 0;
}

static int take(ks_entry *e, const ks_plugin *desc, ks_err *err)
{
    ks_plugin *d = &e->pub.desc;
    int rc = check_size(desc->size, err);
    if (rc) return rc;
    memcpy(d, desc, KS_MIN((size_t)desc->size, sizeof *d));
    if (!d->name || !name_ok(d->name))
        return ks_fail(err, KS_E_FORMAT, "its name is '%.40s': 2 to 31 of a-z, 0-9 and '-' are allowed",
                       d->name ? d->name : "");
    if (!text_ok(d->version, 31))
        return ks_fail(err, KS_E_FORMAT, "its descriptor has no version of 1 to 31 characters in one line");
    if (!text_ok(d->summary, 200))
        return ks_fail(err, KS_E_FORMAT, "its descriptor has no summary of 1 to 200 characters in one line");
    if (!text_ok(d->license, 63))
        return ks_fail(err, KS_E_FORMAT, "its descriptor has no license of 1 to 63 characters in one line");
    return (rc = take_iface(e, err)) ? rc : take_options(e, err);
}

int ks__plugin_take(ks_entry *e, const ks_plugin *desc, ks_err *err)
{
    int rc = take(e, desc, err);
    if (rc) {
        e->pub.desc = (ks_plugin) { 0 }; /* half of it points to unchecked memory of the plugin */
        return rc;
    }
    (void)snprintf(e->name, sizeof e->name, "%s", e->pub.desc.name);
    e->pub.score = e->pub.desc.score;
    rc = check_cpu(e->pub.desc.cpu_required, e->registry->o.cpu, err);
    e->loaded = rc == 0;
    return rc;
}

/* ---- both */

static void base_name(const char *path, char *dst, size_t cap)
{
    const char *slash = strrchr(path, '/');
    (void)snprintf(dst, cap, "%.63s", slash ? slash + 1 : path);
    size_t n = strlen(dst);
    if (n > 3 && strcmp(dst + n - 3, ".so") == 0) dst[n - 3] = 0;
    for (; *dst; dst++)
        if ((unsigned char)*dst < 0x20 || *dst == 0x7f) *dst = '?'; /* it is printed in tables */
}

/* Refuses the plugin; our own lack of memory is an error instead. */
static int give_up(ks_entry *e, const ks_err *why, ks_err *err)
{
    ks__refuse(e, "%s", why->msg);
    return why->code == KS_E_NOMEM ? ks_fail(err, KS_E_NOMEM, "plugin '%.200s': %.250s", e->path, why->msg) : 0;
}

int ks__plugin_load(ks_entry *e, ks_err *err)
{
    ks_err why = { 0 };
    char file_name[64];
    base_name(e->path, file_name, sizeof file_name);
    memcpy(e->name, file_name, sizeof e->name);
    if (check_file(e, &why)) return give_up(e, &why, err);
    void *so = dlopen(e->path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const ks_plugin *desc = so ? dlsym(so, KS_PLUGIN_SYMBOL) : NULL;
    if (!desc) {
        const char *text = dlerror();
        ks__refuse(e, "%.240s", text ? text : "dlopen failed");
    } else if (ks__plugin_take(e, desc, &why)) {
        return give_up(e, &why, err);
    } else if (strcmp(e->name, file_name) != 0) {
        e->loaded = false;
        e->pub.desc = (ks_plugin) { .kind = e->pub.desc.kind };
        ks__refuse(e, "its name is '%s', but the file is '%s.so': they must be equal", e->name, file_name);
    }
    return 0;
}
