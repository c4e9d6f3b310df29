/* Reading an ELF shared object without loading it; see elf.h. Everything the linker would map or follow must lie inside
 * the file: a truncated one is a SIGBUS there, an error here. [any] */
#include "plugin/elf.h"
#include "base/base.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_TABLE_BYTES ((uint64_t)64 << 20) /* symbols or their names: the largest libraries known have a third */

static int read_at(const ks_elf *e, uint64_t off, void *dst, size_t bytes, ks_err *err)
{
    size_t n = 0;
    while (n < bytes) {
        ssize_t got = pread(e->fd, (char *)dst + n, bytes - n, (off_t)(off + n));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return ks_fail(err, KS_E_IO, "it cannot be read: %s", strerror(errno));
        if (got == 0) return ks_fail(err, KS_E_FORMAT, "the file ended while it was read");
        n += (size_t)got;
    }
    return 0;
}

static int check_range(const ks_elf *e, const char *what, uint64_t off, uint64_t bytes, ks_err *err)
{
    if (off <= e->bytes && bytes <= e->bytes - off) return 0;
    return ks_fail(err, KS_E_FORMAT, "the file is truncated: %s ends at byte %llu, the file at %llu", what,
                   (unsigned long long)(off + bytes), (unsigned long long)e->bytes);
}

/* A table of the file in memory. */
static int read_table(const ks_elf *e, const char *what, uint64_t off, uint64_t bytes, void *ret, ks_err *err)
{
    void *p;
    int rc = check_range(e, what, off, bytes, err);
    if (rc) return rc;
    if (bytes > MAX_TABLE_BYTES)
        return ks_fail(err, KS_E_LIMIT, "%s has %llu bytes: at most %llu are read", what, (unsigned long long)bytes,
                       (unsigned long long)MAX_TABLE_BYTES);
    if (!(p = ks_calloc(bytes + 1, 1))) return ks_fail(err, KS_E_NOMEM, "out of memory for %s", what);
    if ((rc = read_at(e, off, p, bytes, err))) {
        free(p);
        return rc;
    }
    memcpy(ret, &p, sizeof p);
    return 0;
}

static int read_head(ks_elf *e, ks_err *err)
{
    Elf64_Ehdr *h = &e->head;
    struct stat st;
    if (fstat(e->fd, &st)) return ks_fail(err, KS_E_IO, "it cannot be examined: %s", strerror(errno));
    if (!S_ISREG(st.st_mode)) return ks_fail(err, KS_E_FORMAT, "it is no regular file");
    e->bytes = (uint64_t)st.st_size;
    size_t n = KS_MIN(e->bytes, sizeof *h);
    int rc = read_at(e, 0, h, n, err);
    if (rc) return rc;
    if (n < SELFMAG || memcmp(h->e_ident, ELFMAG, SELFMAG) != 0)
        return ks_fail(err, KS_E_FORMAT, "it is no shared object: the file does not begin with an ELF header");
    if ((rc = check_range(e, "its header", 0, sizeof *h, err))) return rc;
    if (h->e_ident[EI_CLASS] != ELFCLASS64 || h->e_ident[EI_DATA] != ELFDATA2LSB || h->e_machine != EM_X86_64)
        return ks_fail(err, KS_E_UNSUPPORTED,
                       "it is built for another machine: ELF machine %u with %s bits, this program is x86-64",
                       h->e_machine, h->e_ident[EI_CLASS] == ELFCLASS64 ? "64" : "32");
    if (h->e_type != ET_DYN)
        return ks_fail(err, KS_E_FORMAT, "it is an ELF file of type %u, no shared object", h->e_type);
    if (h->e_phentsize != sizeof(Elf64_Phdr) || h->e_shentsize != sizeof(Elf64_Shdr) || h->e_shnum == 0)
        return ks_fail(err, KS_E_FORMAT, "its ELF header is broken, or its section headers were stripped away");
    return 0;
}

static int read_headers(ks_elf *e, ks_err *err)
{
    const Elf64_Ehdr *h = &e->head;
    int rc =
        read_table(e, "the program header table", h->e_phoff, (uint64_t)h->e_phnum * sizeof *e->segs, &e->segs, err);
    if (!rc)
        rc = read_table(e, "the section header table", h->e_shoff, (uint64_t)h->e_shnum * sizeof *e->secs, &e->secs,
                        err);
    for (uint32_t i = 0; !rc && i < h->e_phnum; i++)
        if (e->segs[i].p_type == PT_LOAD || e->segs[i].p_type == PT_DYNAMIC)
            rc = check_range(e, "a segment", e->segs[i].p_offset, e->segs[i].p_filesz, err);
    return rc;
}

static int read_symbols(ks_elf *e, ks_err *err)
{
    for (uint32_t i = 0; i < e->head.e_shnum; i++) {
        const Elf64_Shdr *s = &e->secs[i];
        if (s->sh_type != SHT_DYNSYM) continue;
        if (s->sh_entsize != sizeof *e->syms || s->sh_link >= e->head.e_shnum) break;
        const Elf64_Shdr *t = &e->secs[s->sh_link];
        int rc = read_table(e, "the symbol table", s->sh_offset, s->sh_size, &e->syms, err);
        if (!rc) rc = read_table(e, "the symbols' names", t->sh_offset, t->sh_size, &e->names, err);
        if (rc) return rc;
        e->n_syms = s->sh_size / sizeof *e->syms;
        e->names_bytes = t->sh_size; /* and one NUL of ours behind them */
        return 0;
    }
    return ks_fail(err, KS_E_FORMAT, "it has no dynamic symbols: it exports nothing");
}

int ks_elf_open(ks_elf *ret, const char *path, ks_err *err)
{
    *ret = (ks_elf) { .fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) }; /* a pipe of that name must not block */
    if (ret->fd < 0) return ks_fail(err, KS_E_IO, "it cannot be opened: %s", strerror(errno));
    int rc = read_head(ret, err);
    if (!rc) rc = read_headers(ret, err);
    if (!rc) rc = read_symbols(ret, err);
    if (rc) ks_elf_close(ret);
    return rc;
}

void ks_elf_close(ks_elf *e)
{
    if (e->fd >= 0) close(e->fd);
    free(e->segs);
    free(e->secs);
    free(e->syms);
    free(e->names);
    *e = (ks_elf) { .fd = -1 };
}

const char *ks_elf_name(const ks_elf *e, const Elf64_Sym *s)
{
    return s->st_name < e->names_bytes ? e->names + s->st_name : "";
}

bool ks_elf_is_export(const Elf64_Sym *s)
{
    uint8_t bind = ELF64_ST_BIND(s->st_info), seen = ELF64_ST_VISIBILITY(s->st_other);
    return s->st_shndx != SHN_UNDEF && s->st_shndx != SHN_ABS && (bind == STB_GLOBAL || bind == STB_WEAK) &&
           (seen == STV_DEFAULT || seen == STV_PROTECTED);
}

const Elf64_Sym *ks_elf_find(const ks_elf *e, const char *name)
{
    for (size_t i = 0; i < e->n_syms; i++)
        if (ks_elf_is_export(&e->syms[i]) && strcmp(ks_elf_name(e, &e->syms[i]), name) == 0) return &e->syms[i];
    return NULL;
}

int ks_elf_read(const ks_elf *e, uint64_t addr, void *dst, size_t bytes, ks_err *err)
{
    for (uint32_t i = 0; i < e->head.e_phnum; i++) {
        const Elf64_Phdr *p = &e->segs[i];
        if (p->p_type != PT_LOAD || addr < p->p_vaddr || addr - p->p_vaddr > p->p_filesz) continue;
        if (bytes > p->p_filesz - (addr - p->p_vaddr)) continue;
        return read_at(e, p->p_offset + (addr - p->p_vaddr), dst, bytes, err);
    }
    return ks_fail(err, KS_E_FORMAT, "nothing of the file lies at address %#llx", (unsigned long long)addr);
}

uint32_t ks_elf_n_constructors(const ks_elf *e)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < e->head.e_shnum; i++)
        if (e->secs[i].sh_type == SHT_INIT_ARRAY) n += e->secs[i].sh_size / sizeof(Elf64_Addr);
    return (uint32_t)KS_MIN(n, UINT32_MAX);
}
