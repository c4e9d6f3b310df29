/* What a shared object says about itself, read from the file and not by loading it: the dynamic linker runs
 * constructors and trusts what it maps. Every offset and count is checked against the file's size. [any] */
#ifndef KS_PLUGIN_ELF_H
#define KS_PLUGIN_ELF_H

#include <elf.h>
#include <krasis/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ks_elf {
    int fd;
    uint64_t bytes; /* of the file */
    Elf64_Ehdr head;
    Elf64_Phdr *segs; /* (head.e_phnum) */
    Elf64_Shdr *secs; /* (head.e_shnum) */
    Elf64_Sym *syms;  /* (n_syms) the dynamic symbols */
    char *names;      /* (names_bytes) of the symbols, NUL-terminated */
    size_t n_syms, names_bytes;
} ks_elf;

/* A complete ELF shared object for x86-64, or an error in words for people; on error nothing is left open. */
KS_MUST_CHECK int ks_elf_open(ks_elf *ret, const char *path, ks_err *err);
void ks_elf_close(ks_elf *e);
const char *ks_elf_name(const ks_elf *e, const Elf64_Sym *s); /* never NULL */
/* The exported symbol of that name; NULL: none. */
const Elf64_Sym *ks_elf_find(const ks_elf *e, const char *name);
/* True for a symbol that others may link to, as far as the plugin brings it along. */
bool ks_elf_is_export(const Elf64_Sym *s);
/* What lies at an address before relocation: numbers are final, pointers are not. */
KS_MUST_CHECK int ks_elf_read(const ks_elf *e, uint64_t addr, void *dst, size_t bytes, ks_err *err);
/* Constructors that run while the file is loaded; the C runtime's own is one. */
uint32_t ks_elf_n_constructors(const ks_elf *e);

#endif
