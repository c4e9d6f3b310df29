/* The program as a child process. See the header. */
#include "server_proc.h"

#include "http_client.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h>

#include <cmocka.h>

#define LOG "server.log"
#define MAX_ARGS 40

const char *server_root;

static void read_log(server_proc *p)
{
    FILE *file = fopen(LOG, "r");
    assert_non_null(file);
    p->log[fread(p->log, 1, sizeof p->log - 1, file)] = 0;
    fclose(file);
}

void server_spawn(server_proc *p, const char *const *args)
{
    const char *argv[MAX_ARGS] = { KS_BUILD_DIR "/krasis", "serve", "--plugin-dir", KS_BUILD_DIR "/plugins" };
    char program[1024];
    int n = 4;
    if (server_root) {
        (void)snprintf(program, sizeof program, "%s/krasis", server_root);
        argv[0] = program;
    }
    for (; *args; args++) {
        assert_true(n < MAX_ARGS - 1);
        argv[n++] = *args;
    }
    memset(p, 0, sizeof *p);
    p->start_ms = client_now_ms();
    int fd = open(LOG, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    p->pid = fork();
    assert_true(p->pid >= 0);
    if (p->pid == 0) {
        if (dup2(fd, STDERR_FILENO) < 0 || dup2(fd, STDOUT_FILENO) < 0) _exit(126);
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(fd);
}

static int try_wait(server_proc *p, int *status)
{
    pid_t done = waitpid(p->pid, status, WNOHANG);
    if (done == p->pid) p->pid = 0;
    return done != 0;
}

void server_wait_listening(server_proc *p, uint32_t limit_ms)
{
    static const char sign[] = "listening on http://127.0.0.1:";
    uint64_t until = client_now_ms() + limit_ms;
    int status;
    for (;;) {
        read_log(p);
        const char *at = strstr(p->log, sign);
        if (at && strchr(at, '\n')) {
            p->port = (uint16_t)strtoul(at + sizeof sign - 1, NULL, 10);
            return;
        }
        if (try_wait(p, &status)) fail_msg("the server ended (%d): %s", status, p->log);
        if (client_now_ms() > until) fail_msg("the server does not listen after %u ms: %s", limit_ms, p->log);
        usleep(2000);
    }
}

int server_wait_exit(server_proc *p, uint32_t limit_ms)
{
    uint64_t until = client_now_ms() + limit_ms;
    int status;
    while (!try_wait(p, &status)) {
        read_log(p);
        if (client_now_ms() > until) fail_msg("the server still runs after %u ms: %s", limit_ms, p->log);
        usleep(2000);
    }
    read_log(p);
    if (!WIFEXITED(status)) fail_msg("the server died of signal %d: %s", WTERMSIG(status), p->log);
    return WEXITSTATUS(status);
}

void server_signal(server_proc *p, int sig)
{
    assert_true(p->pid > 0);
    assert_int_equal(kill(p->pid, sig), 0);
}

void server_kill(server_proc *p)
{
    int status;
    if (p->pid <= 0) return;
    kill(p->pid, SIGKILL);
    while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR) {
    }
    p->pid = 0;
}
