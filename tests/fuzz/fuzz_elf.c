/* The ELF reader on arbitrary bytes: it opens, finds and reads, and never looks beyond the file. */
#include "plugin/elf.h"
#include <krasis/plugin.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ks_elf e;
    char path[64];
    uint8_t head[sizeof(ks_plugin)];
    int fd = memfd_create("elf", MFD_CLOEXEC);
    if (fd < 0) return 0;
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (write(fd, data, size) == (ssize_t)size && ks_elf_open(&e, path, NULL) == 0) {
        const Elf64_Sym *s = ks_elf_find(&e, KS_PLUGIN_SYMBOL);
        if (s) (void)!ks_elf_read(&e, s->st_value, head, sizeof head, NULL); /* either answer is fine */
        for (size_t i = 0; i < e.n_syms; i++)
            if (ks_elf_is_export(&e.syms[i]) && strlen(ks_elf_name(&e, &e.syms[i])) > size) __builtin_trap();
        (void)ks_elf_n_constructors(&e);
        ks_elf_close(&e);
    }
    close(fd);
    return 0;
}
