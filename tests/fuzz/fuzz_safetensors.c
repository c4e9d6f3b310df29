/* The safetensors loader: an accepted file keeps its promises (names unique, data covered once, reads inside it).
 * The input is the file. One thread. */
#include "st_file.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define HOLDS(expr) ((expr) ? (void)0 : __builtin_trap())

static void check(const st_file *f, uint64_t file_bytes)
{
    uint64_t covered = 0;
    uint8_t buf[256];
    ks_err err;
    ks_tensor t = { .size = sizeof t }, before = { .size = sizeof before };
    for (uint64_t i = 0; st_tensor(f, i, &t, &err) == 0; i++, before = t) {
        uint64_t bytes = ks_type_bits(t.type) / 8;
        HOLDS(t.rank <= KS_MAX_RANK && strlen(t.name) > 0 && bytes > 0);
        for (uint32_t d = 0; d < t.rank; d++) bytes *= t.shape[d];
        HOLDS(bytes == t.bytes && (!before.name || strcmp(before.name, t.name) != 0));
        covered += t.bytes;
        HOLDS(covered <= file_bytes);
        size_t n = t.bytes < sizeof buf ? (size_t)t.bytes : sizeof buf;
        HOLDS(st_read(f, i, t.bytes - n, buf, n, &err) == 0);
        HOLDS(st_read(f, i, t.bytes, buf, 1, &err) != 0);
    }
    ks_value v = { .size = sizeof v };
    if (st_meta(f, "format", 0, &v, &err) == 0) HOLDS(strlen(v.s) == v.s_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char path[64];
    st_file *f = NULL;
    ks_err err = { .code = 0 };
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || (n != 0 && write(fd, data, n) != (ssize_t)n)) abort();
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    (void)st_sniff(data, n); /* whatever it says, opening must be safe */
    int rc = st_open(path, &f, &err);
    HOLDS(rc == 0 ? f != NULL : f == NULL && err.code == rc && err.msg[0] && !strchr(err.msg, '\n'));
    if (rc == 0) check(f, n);
    st_close(f);
    (void)close(fd);
    return 0;
}
