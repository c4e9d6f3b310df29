/* Runs build/krasis as a child process for tests, with KRASIS_HOME in the test's folder and its stderr in a file.
 * Every wait has a limit. A child that is left over is killed by server_kill, which every teardown calls. */
#ifndef TESTS_API_SERVER_PROC_H
#define TESTS_API_SERVER_PROC_H

#include <stdint.h>
#include <sys/types.h>

typedef struct server_proc {
    pid_t pid; /* 0: none */
    uint16_t port;
    uint64_t start_ms; /* before exec */
    char log[16384];   /* stderr so far, as of the last call */
} server_proc;

/* Folder of the program and of its folder `plugins`; NULL: the build. */
extern const char *server_root;
/* krasis serve with the build's plugins and these further arguments; the last is NULL. */
void server_spawn(server_proc *p, const char *const *args);
void server_wait_listening(server_proc *p, uint32_t limit_ms); /* fails the test if it ends before */
int server_wait_exit(server_proc *p, uint32_t limit_ms);       /* the exit code; fails the test on a signal */
void server_signal(server_proc *p, int sig);
void server_kill(server_proc *p);

#endif
