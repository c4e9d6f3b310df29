/* krasis config: what is set and why, the saved settings, and the texts made from the option table. */
#include "app/cmd.h"
#include "app/load.h"
#include "base/base.h"
#include "base/file.h"
#include <string.h>

static int show(ks_config *c, ks_err *err)
{
    (void)err;
    ks_config_show(c, stdout);
    return 0;
}

/* The folder of the file may not exist before the first save. */
static int save(ks_config *c, ks_err *err)
{
    char *home = ks_home(err), *path = home ? ks_config_saved_path(err) : NULL;
    int rc = path ? ks_mkdirs(home, err) : err->code;
    if (rc == 0) rc = ks_config_save(c, path, err);
    if (rc == 0) printf("saved as %s\n", path);
    free(home);
    free(path);
    return rc;
}

static const struct {
    const char *word;
    int (*run)(ks_config *c, ks_err *err); /* of these two, the saved settings are read before */
    void (*emit)(FILE *f);
} actions[] = {
    { "show", show, NULL },
    { "save", save, NULL },
    { "ini", NULL, ks_config_emit_ini },
    { "md", NULL, ks_config_emit_markdown },
    { "man", NULL, ks_config_emit_man },
    { "man5", NULL, ks_config_emit_man5 },
};

static const char *action_name(const void *ctx, uint32_t i)
{
    (void)ctx;
    return actions[i].word;
}

static int read_saved(ks_config *c, ks_err *err)
{
    char *path = ks_config_saved_path(err);
    int rc = !path ? err->code : ks_file_exists(path) ? ks_config_read_ini(c, path, KS_FROM_SAVED, err) : 0;
    free(path);
    return rc;
}

int ks_cmd_config(ks_config *c, ks_cli *cli)
{
    const char *word = cli->n_words ? cli->words[0] : "", *near;
    ks_err err = { 0 };
    for (size_t i = 0; i < KS_COUNT(actions); i++) {
        if (strcmp(actions[i].word, word) != 0) continue;
        if (actions[i].emit) return actions[i].emit(stdout), 0;
        int rc = read_saved(c, &err);
        if (rc == 0) rc = actions[i].run(c, &err);
        return rc ? ks_app_fail(&err) : 0;
    }
    near = ks_name_nearest(word, KS_COUNT(actions), action_name, NULL);
    (void)ks_fail(&err, KS_E_CONFIG, "config '%.64s': %s%s%s", word,
                  near ? "did you mean '" : "one of show, save, ini, md, man, man5", near ? near : "",
                  near ? "'?" : ""); /* reported below */
    return ks_app_fail(&err);
}
