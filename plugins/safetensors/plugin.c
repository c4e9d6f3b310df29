/* The descriptor of the safetensors loader. Stateless: all state is in the open file (st_file.c). */
#include "st_file.h"

static int sniff(void *self, const char *path, const uint8_t *head, size_t n)
{
    (void)self;
    (void)path;
    return st_sniff(head, n);
}

static int open_file(void *self, const char *path, void **ret_file, ks_err *err)
{
    (void)self;
    return st_open(path, (st_file **)ret_file, err);
}

static void close_file(void *file)
{
    st_close(file);
}

static int tensor(void *file, uint64_t i, ks_tensor *ret, ks_err *err)
{
    return st_tensor(file, i, ret, err);
}

static int read_file(void *file, uint64_t i, uint64_t off, void *dst, size_t bytes, ks_err *err)
{
    return st_read(file, i, off, dst, bytes, err);
}

static int meta(void *file, const char *key, uint64_t index, ks_value *ret, ks_err *err)
{
    return st_meta(file, key, index, ret, err);
}

/* No map(): a file that shrinks under a mapping is a SIGBUS, under read() it is an error. */
static const ks_loader_iface iface = {
    .size = sizeof(ks_loader_iface),
    .sniff = sniff,
    .open = open_file,
    .close = close_file,
    .tensor = tensor,
    .read = read_file,
    .meta = meta,
};

KS_PLUGIN_DEFINE = {
    .size = sizeof(ks_plugin),
    .kind = KS_KIND_LOADER,
    .name = "safetensors",
    .version = KS_VERSION,
    .summary = "Reads safetensors files",
    .license = "Apache-2.0",
    .cpu_required = KS_CPU_REQUIRED,
    .score = 100,
    .option_size = sizeof(ks_option),
    .iface = &iface,
};
