/* Opening a plugin: the file is held against what an ELF shared object of this machine must be before the dynamic
 * linker sees it (a truncated file would be a SIGBUS there), then the descriptor against the rules of the SDK. No
 * function of the plugin is called here. [main] */
#include "base/base.h"
#include "cpu/cpu.h"
#include "plugin/impl.h"
#include <ctype.h>
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

void ks__refuse(ks_entry *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(e->pub.why, sizeof e->pub.why, fmt, ap);
    va_end(ap);
    e->pub.state = KS_PLUGIN_REFUSED;
}

/* ---- the file */

static int check_segments(int fd, const Elf64_Ehdr *h, uint64_t size, ks_err *err)
{
    uint64_t end = h->e_phoff + (uint64_t)h->e_phnum * sizeof(Elf64_Phdr);
    if (h->e_phentsize != sizeof(Elf64_Phdr) || h->e_phoff > size || end > size)
        return ks_fail(err, KS_E_FORMAT, "the file is truncated: its program headers end at byte %llu, it has %llu",
                       (unsigned long long)end, (unsigned long long)size);
    for (uint32_t i = 0; i < h->e_phnum; i++) {
        Elf64_Phdr p;
        if (pread(fd, &p, sizeof p, (off_t)(h->e_phoff + i * sizeof p)) != (ssize_t)sizeof p)
            return ks_fail(err, KS_E_IO, "cannot be read: %s", strerror(errno));
        if (p.p_type == PT_LOAD && (p.p_offset > size || p.p_filesz > size - p.p_offset))
            return ks_fail(err, KS_E_FORMAT, "the file is truncated: a segment ends at byte %llu, it has %llu",
                           (unsigned long long)(p.p_offset + p.p_filesz), (unsigned long long)size);
    }
    return 0;
}

static int check_elf(int fd, uint64_t size, ks_err *err)
{
    Elf64_Ehdr h;
    if (pread(fd, &h, sizeof h, 0) != (ssize_t)sizeof h || memcmp(h.e_ident, ELFMAG, SELFMAG) != 0)
        return ks_fail(err, KS_E_FORMAT, "this is no shared object (no ELF header)");
    if (h.e_ident[EI_CLASS] != ELFCLASS64 || h.e_ident[EI_DATA] != ELFDATA2LSB || h.e_machine != EM_X86_64)
        return ks_fail(err, KS_E_FORMAT,
                       "it is built for another machine (ELF machine %u, this program runs on x86-64)", h.e_machine);
    if (h.e_type != ET_DYN)
        return ks_fail(err, KS_E_FORMAT, "this is an ELF file but no shared object (type %u)", h.e_type);
    return check_segments(fd, &h, size, err);
}

static int check_owner(const struct stat *st, const char *what, ks_err *err)
{
    if (st->st_mode & S_IWOTH) return ks_fail(err, KS_E_STATE, "%s may be written by everybody: chmod o-w", what);
    if (st->st_uid != 0 && st->st_uid != geteuid())
        return ks_fail(err, KS_E_STATE, "%s belongs to user %u, neither to root nor to you", what,
                       (unsigned)st->st_uid);
    return 0;
}

static int check_file(const char *path, ks_err *err)
{
    char dir[4096];
    struct stat st, ds;
    (void)snprintf(dir, sizeof dir, "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash) slash[slash == dir] = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return ks_fail(err, KS_E_IO, "cannot be opened: %s", strerror(errno));
    int rc = 0;
    if (fstat(fd, &st) || stat(slash ? dir : ".", &ds))
        rc = ks_fail(err, KS_E_IO, "cannot be examined: %s", strerror(errno));
    else if (!S_ISREG(st.st_mode))
        rc = ks_fail(err, KS_E_FORMAT, "this is no regular file");
    else if (!(rc = check_owner(&st, "the file", err)) && !(rc = check_owner(&ds, "its folder", err)))
        rc = check_elf(fd, (uint64_t)st.st_size, err);
    close(fd);
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
        if (!e->rows[i].fn || !e->rows[i].name)
            return ks_fail(err, KS_E_FORMAT, "kernel row %u has no %s", i, e->rows[i].fn ? "name" : "function");
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
    if (size < 2 * sizeof(uint32_t)) return ks_fail(err, KS_E_FORMAT, "its interface says it has %u bytes", size);
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

static int take_options(ks_entry *e, ks_err *err)
{
    ks_plugin *d = &e->pub.desc;
    static const uint32_t field[] = {
        [KS_OPT_BOOL] = 4, [KS_OPT_INT] = 8, [KS_OPT_FLOAT] = 8, [KS_OPT_STR] = sizeof(char *)
    };
    const size_t least = offsetof(ks_option, help) + sizeof(char *);
    if (d->n_options == 0) return 0;
    if (d->n_options > KS_MAX_OPTIONS || !d->options || d->option_size < least || d->option_size > 4096 ||
        d->opts_bytes > KS_MAX_OPTS_BYTES)
        return ks_fail(err, KS_E_FORMAT, "its option table is broken (%u options of %u bytes for a struct of %u)",
                       d->n_options, d->option_size, d->opts_bytes);
    if (!(e->options = ks_calloc(d->n_options, sizeof *e->options)))
        return ks_fail(err, KS_E_NOMEM, "out of memory for its options");
    for (uint32_t i = 0; i < d->n_options; i++) {
        ks_option *o = &e->options[i];
        memcpy(o, (const char *)d->options + (size_t)i * d->option_size, KS_MIN(sizeof *o, (size_t)d->option_size));
        if (!o->key || !o->dflt || !o->help)
            return ks_fail(err, KS_E_FORMAT, "option %u has no key, default or help", i);
        if (o->type == 0 || o->type >= KS_COUNT(field))
            return ks_fail(err, KS_E_FORMAT, "option '%.40s' has the unknown type %u", o->key, o->type);
        if (o->offset > d->opts_bytes || field[o->type] > d->opts_bytes - o->offset || o->offset % field[o->type])
            return ks_fail(err, KS_E_FORMAT, "option '%.40s' lies at byte %u of an options struct of %u", o->key,
                           o->offset, d->opts_bytes);
    }
    d->options = e->options;
    d->option_size = (uint32_t)sizeof *e->options;
    return 0;
}

int ks__plugin_take(ks_entry *e, const ks_plugin *desc, ks_err *err)
{
    const size_t least = offsetof(ks_plugin, iface) + sizeof(void *);
    ks_plugin *d = &e->pub.desc;
    int rc;
    if (desc->size < least || desc->size > 65536)
        return ks_fail(err, KS_E_FORMAT, "its descriptor says it has %u bytes: at least %zu are needed", desc->size,
                       least);
    memcpy(d, desc, KS_MIN((size_t)desc->size, sizeof *d));
    if (!d->name || !name_ok(d->name))
        return ks_fail(err, KS_E_FORMAT, "its name is '%.40s': 2 to 31 of a-z, 0-9 and '-' are allowed",
                       d->name ? d->name : "");
    if (!d->version || !d->summary || !d->license)
        return ks_fail(err, KS_E_FORMAT, "its descriptor lacks the version, the summary or the license");
    if ((rc = take_iface(e, err)) || (rc = take_options(e, err))) return rc;
    (void)snprintf(e->name, sizeof e->name, "%s", d->name);
    e->pub.score = d->score;
    e->loaded = true;
    return 0;
}

/* ---- both */

static const ks_plugin *find_symbol(void *so, ks_err *err)
{
    const ks_plugin *desc = dlsym(so, KS_PLUGIN_SYMBOL);
    char other[32];
    if (desc) return desc;
    for (int major = 0; major < 10; major++) {
        (void)snprintf(other, sizeof other, "krasis_plugin_v%d", major);
        if (major == KS_ABI_MAJOR || !dlsym(so, other)) continue;
        (void)ks_fail(err, KS_E_UNSUPPORTED,
                      "it is built for plugin ABI %d, this program speaks %d: build it against this version's headers",
                      major, KS_ABI_MAJOR);
        return NULL;
    }
    (void)ks_fail(err, KS_E_FORMAT, "it does not export '" KS_PLUGIN_SYMBOL "': it is no krasis plugin");
    return NULL;
}

static void base_name(const char *path, char *dst, size_t cap)
{
    const char *slash = strrchr(path, '/');
    (void)snprintf(dst, cap, "%.63s", slash ? slash + 1 : path);
    size_t n = strlen(dst);
    if (n > 3 && strcmp(dst + n - 3, ".so") == 0) dst[n - 3] = 0;
}

void ks__plugin_load(ks_entry *e)
{
    ks_err err = { 0 };
    char lacking[200], file_name[64];
    base_name(e->path, file_name, sizeof file_name);
    memcpy(e->name, file_name, sizeof e->name);
    if (check_file(e->path, &err)) {
        ks__refuse(e, "%s", err.msg);
        return;
    }
    void *so = dlopen(e->path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!so) {
        const char *text = dlerror();
        ks__refuse(e, "%.240s", text ? text : "dlopen failed");
        return;
    }
    const ks_plugin *desc = find_symbol(so, &err);
    if (!desc || ks__plugin_take(e, desc, &err)) {
        ks__refuse(e, "%s", err.msg);
        return;
    }
    if (strcmp(e->name, file_name) != 0) {
        e->loaded = false;
        ks__refuse(e, "its name is '%s', but the file is '%s.so': they must be equal", e->name, file_name);
        return;
    }
    uint64_t lacks = e->pub.desc.cpu_required & ~e->registry->o.cpu;
    if (lacks) ks__refuse(e, "this CPU lacks %s", ks_cpu_names(lacks, lacking, sizeof lacking));
}
