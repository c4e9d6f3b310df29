/* The program: argv -> command -> settings -> the command's function. No policy of its own. [main] */
#include "app/cmd.h"
#include "app/load.h"
#include "app/version.h" /* made by version.cmake: KS_COMMIT */
#include "base/base.h"
#include "base/file.h"
#include "base/log.h"
#include <errno.h>
#include <krasis/version.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(ks_config *c, ks_cli *cli);
} commands[] = {
#define COMMAND(id, ident, name, words, max_words, help) { name, ks_cmd_##ident },
#include "config/commands.def"
#undef COMMAND
};

/* The launcher: the saved settings plus flags, then the server. */
int ks_cmd_launch(ks_config *c, ks_cli *cli)
{
    return ks_cmd_serve(c, cli);
}

static const char *command_name(const void *ctx, uint32_t i)
{
    (void)ctx;
    return commands[i].name;
}

static int usage(const ks_err *err)
{
    (void)fprintf(stderr, "krasis: %s\n", err->msg); /* nowhere else to say it */
    return err->code == KS_E_NOMEM ? 1 : 2;
}

static int print_help(const ks_cli *cli)
{
    const char *name, *words, *help;
    ks_config_help(stdout, cli->command);
    if (*cli->command) return 0;
    puts("\nCommands, each with a --help of its own:");
    for (uint32_t i = 1; (name = ks_config_command(i, &words, &help)); i++) printf("  %-13s %s\n", name, help);
    return 0;
}

static int print_version(void)
{
    printf("krasis %s%s\n", KS_VERSION, *KS_COMMIT ? " (" KS_COMMIT ")" : "");
    return 0;
}

/* Index of the command, -1 with err. *ret_first: the first argument after it. */
static int find_command(int argc, char **argv, int *ret_first, ks_err *err)
{
    const char *slash = argc ? strrchr(argv[0], '/') : NULL, *program = !argc ? "" : slash ? slash + 1 : argv[0];
    const char *word = strcmp(program, "krasis-server") == 0 ? "serve" : argc > 1 && argv[1][0] != '-' ? argv[1] : "";
    *ret_first = word == (argc > 1 ? argv[1] : NULL) ? 2 : 1;
    for (uint32_t i = 0; i < KS_COUNT(commands); i++)
        if (strcmp(commands[i].name, word) == 0) return (int)i;
    const char *near = ks_name_nearest(word, KS_COUNT(commands), command_name, NULL);
    (void)ks_fail(err, KS_E_CONFIG, "unknown command '%.64s': %s%s%s", word,
                  near ? "did you mean '" : "`krasis --help` lists them", near ? near : "",
                  near ? "'?" : ""); /* -1 tells */
    return -1;
}

/* Settings that the launcher kept: none is fine, and so is having no home. */
static int read_saved(ks_config *c, ks_err *err)
{
    ks_err no_home;
    char *path = ks_config_saved_path(&no_home);
    int rc = path && ks_file_exists(path) ? ks_config_read_ini(c, path, KS_FROM_SAVED, err) : 0;
    free(path);
    return rc;
}

static void setup_log(const ks_config *c)
{
    static const char *const levels[] = { "error", "warn", "info", "debug", "trace" }; /* KS_LOG_ */
    int level = 0;
    while (strcmp(levels[level], ks_config_str(c, "log-level")) != 0) level++;
    ks_log_setup(level, strcmp(ks_config_str(c, "log-format"), "json") == 0);
}

static int run(ks_config *c, int argc, char **argv)
{
    ks_err err = { 0 };
    int first = 1;
    const int i = find_command(argc, argv, &first, &err);
    if (i < 0) return usage(&err);
    ks_cli cli = { .command = commands[i].name };
    if (ks_config_read_args(c, &cli, argc, argv, first, &err)) return usage(&err);
    if (cli.help) return print_help(&cli);
    if (cli.version) return print_version();
    const char *config = ks_config_str(c, "config");
    if (*config && commands[i].run != ks_cmd_synth && ks_config_read_ini(c, config, KS_FROM_FILE, &err))
        return usage(&err);
    if (commands[i].run == ks_cmd_launch && read_saved(c, &err)) return usage(&err);
    setup_log(c);
    if (*ks_config_str(c, "note") && commands[i].run != ks_cmd_config)
        ks_log(KS_LOG_INFO, "note", "%s", ks_config_str(c, "note"));
    return commands[i].run(c, &cli);
}

int main(int argc, char **argv)
{
    ks_config *c = NULL;
    ks_err err = { 0 };
    if (ks_config_new(&c, &err)) return usage(&err);
    int rc = run(c, argc, argv);
    ks_config_free(c);
    if ((fflush(stdout) || ferror(stdout)) && rc == 0) {
        (void)fprintf(stderr, "krasis: standard output: %s\n", strerror(errno)); /* nowhere else to say it */
        rc = 2;
    }
    return rc;
}
