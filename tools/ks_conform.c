/* krasis-conform: holds a plugin against the rules of docs/plugin-abi.md and prints TAP. Every rule runs in a child
 * process with a time limit: a crash or a hang is a broken rule and not a dead tool. */
#include "base/base.h"
#include "conform.h"
#include "cpu/cpu.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_CHOSEN 64u
#define MAX_COMMENT_LINES 20

typedef struct rule {
    const char *id, *text;
    rule_fn run;
    uint32_t kind;   /* 0: any */
    bool calls;      /* calls the plugin's functions: needs its CPU features */
    bool foundation; /* if it is broken, nothing after it means anything */
} rule;

/* In the order they run: what needs no code of the plugin first. */
static const rule rules[] = {
    { "ABI-1", "exports exactly one symbol, krasis_plugin_v1, of data type", abi_1, 0, false, false },
    { "ABI-2", "needs no symbol of the host", abi_2, 0, false, true },
    { "ABI-4", "needs no CPU feature for code that runs while it is loaded", abi_4, 0, false, true },
    { "ABI-3", "can be loaded with RTLD_NOW and RTLD_LOCAL", abi_3, 0, false, true },
    { "ABI-5", "has a valid descriptor, named like its file", abi_5, 0, false, true },
    { "ABI-7", "probe() ends within 100 ms and gives the same answer twice", abi_7, 0, true, false },
    { "ABI-8", "opens and closes repeatedly and leaves nothing behind", abi_8, 0, true, false },
    { "ABI-9", "answers an unknown extension with NULL", abi_9, 0, true, false },
    { "ABI-10", "fails with a negative code and a message of one line", abi_10, 0, true, false },
    { "ABI-11", "does not end or change the process, nor write to its output", abi_11, 0, true, false },
    { "ABI-12", "works with a host that knows more fields, and with fewer of its own", abi_12, 0, true, false },
    { "LDR-1", "any file, however broken, is an error and never a crash", ldr_1, KS_KIND_LOADER, true, false },
    { "DEV-1", "lists its devices to an end", dev_1, KS_KIND_DEVICE, true, false },
    { "FE-1", "stop() returns, also before start() and twice", fe_1, KS_KIND_FRONTEND, true, false },
};
static const struct {
    const char *id, *text;
} kernel_rules[CONFORM_RULES] = {
    { "KRN-1", "equals the reference within the op's bound" },
    { "KRN-2", "touches only what it was given" },
    { "KRN-3", "any split gives the same bits" },
    { "KRN-4", "allocates nothing and keeps no state" },
};

typedef struct tool {
    conform c;
    const char *only[MAX_CHOSEN], *skip[MAX_CHOSEN];
    uint32_t n_only, n_skip, limit_s, n_lines, n_broken;
    bool in_process, bench;
    const char *blocked; /* the foundation that is broken */
} tool;

void verdict(outcome *o, int32_t v, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(o->why, sizeof o->why, fmt, ap); /* cut off is fine: it is for people */
    va_end(ap);
    for (char *p = o->why; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = ' ';
    o->verdict = v;
}

static bool is_in(const char *const *list, uint32_t n, const char *id)
{
    for (uint32_t i = 0; i < n; i++)
        if (strcmp(list[i], id) == 0) return true;
    return false;
}

static bool is_wanted(const tool *t, const char *id)
{
    return (t->n_only == 0 || is_in(t->only, t->n_only, id)) && !is_in(t->skip, t->n_skip, id);
}

/* ---- children */

typedef struct job {
    rule_fn run;
    uint32_t row; /* if run is NULL: krn_row of this one */
    uint32_t n_out;
} job;

static void run_job(const conform *c, const job *j)
{
    if (j->run)
        j->run(c, c->board->out);
    else
        krn_row(c, j->row, c->board->out);
}

/* What the child said before it died: the tail of it, as comments. */
static void show_output(int fd)
{
    char text[4096];
    off_t size = lseek(fd, 0, SEEK_END);
    ssize_t n = size > 0 ? pread(fd, text, sizeof text - 1, KS_MAX(0, size - (off_t)sizeof text + 1)) : 0;
    if (n <= 0) return;
    text[n] = 0;
    char *line = text;
    int lines = 0;
    for (char *p = text + n; p > text; p--)
        if (p[-1] == '\n' && ++lines > MAX_COMMENT_LINES) {
            line = p;
            break;
        }
    for (char *next; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        printf("#   %s\n", line);
    }
}

/* The first rule that the child did not come to gets the blame; those after it were not looked at. */
static void blame(board *b, uint32_t n_out, const char *what)
{
    bool told = false;
    for (uint32_t i = 0; i < n_out; i++) {
        if (b->out[i].verdict != NOT_REACHED) continue;
        if (told)
            verdict(&b->out[i], SKIPPED, "not reached");
        else
            verdict(&b->out[i], BROKEN, "%s", what);
        told = true;
    }
}

/* Waits for the child's end, which closes its end of the pipe; kills it at the limit. */
static void await(tool *t, pid_t pid, int fd, uint32_t n_out)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };
    char what[128];
    int status, n;
    do n = poll(&p, 1, (int)t->limit_s * 1000);
    while (n < 0 && errno == EINTR);
    if (n <= 0 && kill(pid, SIGKILL) != 0) perror("krasis-conform: kill");
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) return; /* nobody else reaps our children */
    if (n <= 0)
        (void)snprintf(what, sizeof what, "it did not end within %u s", t->limit_s);
    else if (WIFSIGNALED(status))
        (void)snprintf(what, sizeof what, "it died of signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        (void)snprintf(what, sizeof what, "it ended the process with exit code %d", WEXITSTATUS(status));
    blame(t->c.board, n_out, what);
}

static void run_child(tool *t, const job *j)
{
    int fds[2];
    memset(t->c.board->out, 0, sizeof t->c.board->out);
    if (t->in_process) {
        run_job(&t->c, j);
        return;
    }
    t->c.output_fd = memfd_create("output", MFD_CLOEXEC);
    if (t->c.output_fd < 0 || pipe2(fds, O_CLOEXEC) != 0) {
        blame(t->c.board, j->n_out, strerror(errno));
        return;
    }
    (void)fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        if (dup2(t->c.output_fd, 1) != 1 || dup2(t->c.output_fd, 2) != 2) _exit(90);
        run_job(&t->c, j);
        _exit(0); /* no destructors of the plugin: that is ABI-8's business */
    }
    close(fds[1]);
    if (pid < 0)
        blame(t->c.board, j->n_out, strerror(errno));
    else
        await(t, pid, fds[0], j->n_out);
    close(fds[0]);
    if (t->c.board->out[0].verdict == BROKEN || t->c.board->out[1].verdict == BROKEN) show_output(t->c.output_fd);
    close(t->c.output_fd);
    t->c.output_fd = -1;
}

/* ---- TAP */

static void print(tool *t, const outcome *o, const char *id, const char *row, const char *text)
{
    if (is_in(t->skip, t->n_skip, id) || (o->verdict != BROKEN && !is_wanted(t, id))) return;
    printf("%s %u - %s %s%s%s", o->verdict == BROKEN ? "not ok" : "ok", ++t->n_lines, id, row, *row ? ": " : "", text);
    if (o->verdict == SKIPPED) printf(" # SKIP %s", o->why);
    printf("\n");
    if (o->verdict == BROKEN) printf("#   %s\n", o->why);
    t->n_broken += o->verdict == BROKEN;
}

/* Why this rule cannot be looked at; false: it can. */
static bool is_blocked(const tool *t, bool calls, outcome *o)
{
    char names[200];
    uint64_t lacks = t->c.board->cpu_required & ~ks_cpu_features();
    if (t->blocked)
        verdict(o, SKIPPED, "nothing can be said before %s is kept", t->blocked);
    else if (calls && lacks)
        verdict(o, SKIPPED, "this CPU lacks %s", ks_cpu_names(lacks, names, sizeof names));
    else
        return false;
    return true;
}

static void run_rule(tool *t, const rule *r)
{
    outcome o = { 0 };
    if (!r->foundation && !is_wanted(t, r->id)) return;
    if (r->kind && t->c.board->kind != r->kind) return;
    if (is_blocked(t, r->calls, &o)) {
        print(t, &o, r->id, "", r->text);
        return;
    }
    run_child(t, &(job) { .run = r->run, .n_out = 1 });
    o = t->c.board->out[0];
    print(t, &o, r->id, "", r->text);
    /* Skipped foundations are missing libraries: what cannot be loaded cannot be looked at. */
    if (r->foundation && r->run != abi_4 && (o.verdict == BROKEN || o.verdict == SKIPPED)) t->blocked = r->id;
    /* Loading it would run its constructors, here of all places. */
    if (r->run == abi_4 && o.verdict == BROKEN && (t->c.board->cpu_required & ~ks_cpu_features())) t->blocked = r->id;
}

static void run_row(tool *t, uint32_t row)
{
    const board *b = t->c.board;
    bool wanted = false;
    outcome o = { 0 };
    for (uint32_t i = 0; i < CONFORM_RULES; i++) wanted |= is_wanted(t, kernel_rules[i].id);
    if (!wanted) return;
    bool blocked = is_blocked(t, true, &o);
    if (!blocked) run_child(t, &(job) { .row = row, .n_out = CONFORM_RULES });
    for (uint32_t i = 0; i < CONFORM_RULES; i++)
        print(t, blocked ? &o : &b->out[i], kernel_rules[i].id, b->row[row], kernel_rules[i].text);
}

/* ---- the command line */

static int list(void)
{
    for (size_t i = 0; i < KS_COUNT(rules); i++) printf("%-7s %s\n", rules[i].id, rules[i].text);
    for (size_t i = 0; i < KS_COUNT(kernel_rules); i++)
        printf("%-7s every kernel row: %s\n", kernel_rules[i].id, kernel_rules[i].text);
    return 0;
}

static int usage(FILE *to, int rc)
{
    (void)fputs("usage: krasis-conform [OPTION]... PLUGIN.so\n"
                "Holds a plugin against the rules of docs/plugin-abi.md and prints TAP.\n"
                "  --list         the rules it knows\n"
                "  --rule ID      only this rule (may be repeated), and those it stands on if they are broken\n"
                "  --skip ID      not this rule (may be repeated)\n"
                "  --sample FILE  for loaders: a small valid file to damage in many ways\n"
                "  --seed N       of the random inputs (default 1)\n"
                "  --timeout S    for each rule (default 120)\n"
                "  --in-process   no child processes: for a debugger\n"
                "  --bench        measures the kernel rows instead\n"
                "Exit code: 0 all rules are kept or skipped, 1 one is broken, 2 wrong usage.\n",
                to);
    return rc;
}

static bool is_rule(const char *id)
{
    for (size_t i = 0; i < KS_COUNT(rules); i++)
        if (strcmp(rules[i].id, id) == 0) return true;
    for (size_t i = 0; i < KS_COUNT(kernel_rules); i++)
        if (strcmp(kernel_rules[i].id, id) == 0) return true;
    return false;
}

/* An option with a value; false with a message if the value is wrong. */
static bool take_value(tool *t, const char *option, const char *v)
{
    const bool only = strcmp(option, "--rule") == 0;
    if (only || strcmp(option, "--skip") == 0) {
        uint32_t *n = only ? &t->n_only : &t->n_skip;
        if (!is_rule(v) || *n == MAX_CHOSEN) {
            (void)fprintf(stderr, "krasis-conform: there is no rule '%s': see --list\n", v);
            return false;
        }
        (only ? t->only : t->skip)[(*n)++] = v;
        return true;
    }
    if (strcmp(option, "--sample") == 0) {
        t->c.sample = v;
        return true;
    }
    char *end;
    errno = 0;
    unsigned long long number = strtoull(v, &end, 10);
    bool timeout = strcmp(option, "--timeout") == 0;
    if (end == v || *end || errno || *v == '-' || (timeout && (number == 0 || number > 86400))) {
        (void)fprintf(stderr, "krasis-conform: %s '%s' is no number%s\n", option, v,
                      timeout ? " of seconds from 1 to 86400" : "");
        return false;
    }
    if (timeout)
        t->limit_s = (uint32_t)number;
    else
        t->c.seed = number;
    return true;
}

static int parse(tool *t, int argc, char **argv, const char **ret_path)
{
    static const char *const with_value[] = { "--rule", "--skip", "--sample", "--seed", "--timeout" };
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (is_in(with_value, KS_COUNT(with_value), a)) {
            if (i + 1 == argc) return usage(stderr, 2);
            if (!take_value(t, a, argv[++i])) return 2;
        } else if (strcmp(a, "--in-process") == 0) {
            t->in_process = true;
        } else if (strcmp(a, "--bench") == 0) {
            t->bench = true;
        } else if (a[0] == '-' || *ret_path) {
            return usage(stderr, 2);
        } else {
            *ret_path = a;
        }
    }
    return *ret_path ? 0 : usage(stderr, 2);
}

static int conform_all(tool *t)
{
    printf("TAP version 13\n");
    for (size_t i = 0; i < KS_COUNT(rules); i++) run_rule(t, &rules[i]);
    for (uint32_t i = 0; i < t->c.board->n_rows; i++) run_row(t, i);
    printf("1..%u\n", t->n_lines);
    return t->n_broken ? 1 : 0;
}

int main(int argc, char **argv)
{
    static tool t = { .c = { .seed = 1, .output_fd = -1 }, .limit_s = 120 };
    const char *path = NULL;
    if (argc == 2 && strcmp(argv[1], "--list") == 0) return list();
    if (argc == 2 && strcmp(argv[1], "--help") == 0) return usage(stdout, 0);
    int rc = parse(&t, argc, argv, &path);
    if (rc) return rc;
    char *absolute = realpath(path, NULL); /* a bare name would be searched in the linker's folders */
    if (!absolute) {
        (void)fprintf(stderr, "krasis-conform: '%s': %s\n", path, strerror(errno));
        return 2;
    }
    if (t.c.sample && access(t.c.sample, R_OK) != 0) {
        (void)fprintf(stderr, "krasis-conform: --sample '%s': %s\n", t.c.sample, strerror(errno));
        free(absolute);
        return 2;
    }
    t.c.path = absolute;
    t.c.board = mmap(NULL, sizeof *t.c.board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (t.c.board == MAP_FAILED) {
        perror("krasis-conform: mmap");
        free(absolute);
        return 2;
    }
    rc = t.bench ? conform_bench(&t.c) : conform_all(&t);
    (void)munmap(t.c.board, sizeof *t.c.board); /* cannot fail for a mapping of ours */
    free(absolute);
    return rc;
}
