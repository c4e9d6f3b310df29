/* Stands in for libFuzzer in normal builds: fuzz_x FILE-OR-FOLDER ...
 *
 * Runs each file as it is, cut off at every length and with single bytes changed, both at a stride that
 * bounds the runs for a large file. Each input lies in a heap block of exactly its size, so that AddressSanitizer sees
 * a read beyond it. A crash names the file and the mutation. One thread.
 */
#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define RUNS_MAX ((size_t)2048) /* of each kind and file */
#define FILE_MAX ((size_t)16 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static char now_running[4200]; /* for the signal handler */

static void on_crash(int sig)
{
    (void)!write(STDERR_FILENO, now_running, strlen(now_running));
    (void)raise(sig); /* SA_RESETHAND: the default now */
}

static void watch_crashes(void)
{
    static const int signals[] = { SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL };
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        struct sigaction mine = { .sa_handler = on_crash, .sa_flags = (int)SA_RESETHAND | SA_NODEFER }, old;
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler == SIG_DFL) /* a sanitizer's report is better */
            (void)sigaction(signals[i], &mine, NULL);
    }
}

/* `flip` is xored into the byte at `at`, if that is inside. */
static int run_one(const char *path, const uint8_t *data, size_t n, size_t at, uint8_t flip)
{
    uint8_t *copy = malloc(n ? n : 1), *input = copy;
    if (!copy) return fprintf(stderr, "no memory for %zu bytes\n", n), 1;
    if (n)
        memcpy(input, data, n);
    else
        input++; /* nothing readable */
    if (at < n) input[at] ^= flip;
    (void)snprintf(now_running, sizeof now_running, "%s: first %zu bytes, byte %zu ^ 0x%02x\n", path, n, at, flip);
    (void)LLVMFuzzerTestOneInput(input, n);
    free(copy);
    return 0;
}

static int run_file(const char *path, const uint8_t *data, size_t n)
{
    static const uint8_t flips[] = { 0x01, 0x80, 0x20, 0xff, 0x04, 0x10, 0x7f };
    size_t stride = n / RUNS_MAX + 1;
    int bad = run_one(path, data, n, n, 0);
    for (size_t len = 0; len < n && !bad; len += stride) bad = run_one(path, data, len, len, 0);
    for (size_t at = 0; at < n && !bad; at += stride)
        bad = run_one(path, data, n, at, flips[at / stride % sizeof flips]);
    return bad;
}

static int replay(const char *path, size_t *n_files)
{
    struct stat st;
    if (stat(path, &st) != 0) return perror(path), 1;
    if (S_ISDIR(st.st_mode)) {
        DIR *dir = opendir(path);
        int bad = 0;
        if (!dir) return perror(path), 1;
        for (struct dirent *e; !bad && (e = readdir(dir));) {
            char name[4096];
            if (e->d_name[0] == '.') continue;
            int len = snprintf(name, sizeof name, "%s/%s", path, e->d_name);
            bad = len < 0 || (size_t)len >= sizeof name || replay(name, n_files);
        }
        (void)closedir(dir);
        return bad;
    }
    size_t n = (size_t)st.st_size;
    if (n > FILE_MAX) return fprintf(stderr, "%s: larger than %zu bytes\n", path, FILE_MAX), 1;
    FILE *f = fopen(path, "rb");
    uint8_t *data = malloc(n + 1);
    int bad = !f || !data || fread(data, 1, n, f) != n;
    if (bad)
        perror(path);
    else
        bad = run_file(path, data, n);
    free(data);
    if (f) (void)fclose(f);
    ++*n_files;
    return bad;
}

int main(int argc, char **argv)
{
    size_t n_files = 0;
    int bad = 0;
    watch_crashes();
    for (int i = 1; i < argc && !bad; i++) bad = replay(argv[i], &n_files);
    if (!bad && !n_files) bad = fprintf(stderr, "usage: %s FILE-OR-FOLDER ... (no file found)\n", argv[0]) > 0;
    if (!bad) (void)fprintf(stderr, "%zu files replayed\n", n_files);
    return bad ? 1 : 0;
}
