/* The program from outside, on an emulated GPU that is lost at a launch of choice: requests in flight get an error that
 * says what to change; then the CPU computes, or the program ends, as --gpu-failure says. */
#include "api/http_client.h"
#include "api/server_proc.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define LIMIT 60000
#define LAUNCH "700" /* some steps of the model take so many */
#define MOST_REQUESTS 60

static server_proc server;

static int teardown(void **state)
{
    (void)state;
    server_kill(&server);
    return 0;
}

static int set_up(void **state)
{
    (void)state;
    (void)mkdir("box", 0755); /* there from the last time, or the links fail */
    (void)mkdir("box/plugins", 0755);
    (void)unlink("box/krasis");
    (void)unlink("box/plugins/cuda-experts.so");
    if (link(KS_BUILD_DIR "/krasis", "box/krasis") ||
        link(KS_BUILD_DIR "/tests/cuda/emu/cuda-experts.so", "box/plugins/cuda-experts.so"))
        return -1;
    server_root = "box";
    return setenv("KRASIS_HOME", "home", 1) || setenv("CUDA_EMU_LOSE_LAUNCH", LAUNCH, 1) ||
           setenv("KRASIS_PLUGIN_PATH", KS_BUILD_DIR "/plugins", 1) ||
           system("test -d model || box/krasis synth --output model --config " KS_SOURCE_DIR
                  "/tests/golden/qwen3_moe/config.json 2>log");
}

/* Status of one completion; its body in c. */
static int complete(client *c)
{
    memset(c, 0, sizeof *c);
    return client_once(c, server.port, "POST", "/v1/completions", "",
                       "{\"model\":\"model\",\"prompt\":[1,2,3,4,5],\"max_tokens\":8,\"temperature\":0}");
}

/* Asks until the device is lost. */
static void lose(void)
{
    client c;
    int status = 200, n = 0;
    while (status == 200) {
        assert_true(n++ < MOST_REQUESTS);
        status = complete(&c);
        if (status != 200) {
            assert_int_equal(status, 500);
            if (!strstr(c.body, "the device is no longer used; --device cpu runs without it")) fail_msg("%s", c.body);
        }
        client_fini(&c);
    }
    assert_true(n > 1); /* it worked before */
}

#define SERVE(...)                                                                                               \
    server_spawn(&server, (const char *const[]) { "--host", "127.0.0.1", "--port", "0", "--model-path", "model", \
                                                  "--heat", "off", "--vram-limit", "1G", __VA_ARGS__, NULL })

static void the_cpu_goes_on_when_the_gpu_is_lost(void **state)
{
    client c;
    (void)state;
    SERVE("--device", "hybrid");
    server_wait_listening(&server, LIMIT);
    lose();
    for (int i = 0; i < 3; i++) {
        assert_int_equal(complete(&c), 200);
        assert_non_null(strstr(c.body, "\"completion_tokens\":8"));
        client_fini(&c);
    }
    assert_int_equal(client_once(&c, server.port, "GET", "/health", "", ""), 200);
    client_fini(&c);
    server_signal(&server, SIGTERM);
    assert_int_equal(server_wait_exit(&server, LIMIT), 0);
    assert_non_null(strstr(server.log, "the CPU computes from now on"));
}

static void the_program_ends_with_1_when_that_is_what_is_wanted(void **state)
{
    (void)state;
    SERVE("--device", "cuda", "--gpu-failure", "stop");
    server_wait_listening(&server, LIMIT);
    lose();
    assert_int_equal(server_wait_exit(&server, LIMIT), 1);
    assert_non_null(strstr(server.log, "nothing is computed any more"));
    assert_non_null(strstr(server.log, "krasis: GPU 0 (emulated GPU)"));
}

static void a_command_that_meets_it_ends_with_1(void **state)
{
    char text[4096];
    (void)state;
    FILE *p = popen("CUDA_EMU_LOSE_LAUNCH=30 box/krasis generate-ids --model-path model --ids 1,2,3 -n 9 --device cuda "
                    "--heat off --vram-limit 1G 2>&1 >/dev/null",
                    "r");
    assert_non_null(p);
    text[fread(text, 1, sizeof text - 1, p)] = 0;
    int status = pclose(p);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
    assert_non_null(strstr(text, "--device cpu runs without it"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(the_cpu_goes_on_when_the_gpu_is_lost, teardown),
        cmocka_unit_test_teardown(the_program_ends_with_1_when_that_is_what_is_wanted, teardown),
        cmocka_unit_test(a_command_that_meets_it_ends_with_1),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
