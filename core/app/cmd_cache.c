/* krasis cache: what the cached weights take, and removing those that are of no use. Nothing is removed without --yes.
 */
#include "app/cmd.h"
#include "app/load.h"
#include "base/base.h"
#include "store/cache_list.h"
#include <inttypes.h>
#include <string.h>
#include <time.h>

#define KEY_SHOWN 12

static void age_text(int64_t used_s, char dst[24])
{
    const int64_t s = KS_MAX((int64_t)time(NULL) - used_s, (int64_t)0);
    if (s < 3600)
        (void)snprintf(dst, 24, "%" PRId64 " min", s / 60);
    else if (s < 48 * 3600)
        (void)snprintf(dst, 24, "%" PRId64 " h", s / 3600);
    else
        (void)snprintf(dst, 24, "%" PRId64 " days", s / 86400);
}

static void print_head(void)
{
    printf("%-*s  %10s  %8s  %-13s  %s\n", KEY_SHOWN, "KEY", "SIZE MB", "USED", "STATE", "MODEL");
}

static void print_item(const ks_cache_item *i)
{
    char age[24];
    age_text(i->used_s, age);
    printf("%.*s  %10.1f  %8s  %-13s  %s\n", KEY_SHOWN, i->key, (double)i->bytes / 1e6, age,
           ks_cache_state_name(i->state), i->model[0] ? i->model : "-");
}

/* ---- which */

static bool is_useless(const ks_cache_item *i)
{
    return i->state == KS_CACHE_OTHER || i->state == KS_CACHE_DAMAGED || i->state == KS_CACHE_LEFTOVER;
}

static bool is_gone(const ks_cache_item *i)
{
    return i->state == KS_CACHE_GONE;
}

static bool is_unfinished(const ks_cache_item *i)
{
    return i->state == KS_CACHE_UNFINISHED;
}

static bool is_any(const ks_cache_item *i)
{
    return i->state != KS_CACHE_BUILDING;
}

static const struct {
    const char *word;
    bool (*fits)(const ks_cache_item *i);
} groups[] = {
    { "useless", is_useless }, /* without a word */
    { "gone", is_gone },
    { "unfinished", is_unfinished },
    { "all", is_any },
};

/* Marks what the word means, a group or the beginning of a key. */
static int mark(const ks_cache_items *x, const char *word, bool *marked, ks_err *err)
{
    size_t hits = 0, last = 0, n = strlen(word);
    for (size_t g = 0; g < KS_COUNT(groups); g++) {
        if (strcmp(groups[g].word, word) != 0) continue;
        for (size_t i = 0; i < x->n; i++) marked[i] = marked[i] || groups[g].fits(&x->item[i]);
        return 0;
    }
    for (size_t i = 0; i < x->n; i++)
        if (n >= 4 && strncmp(x->item[i].key, word, n) == 0) {
            hits++;
            last = i;
        }
    if (hits == 1) {
        marked[last] = true;
        return 0;
    }
    return ks_fail(err, KS_E_CONFIG,
                   "cache clean '%.40s': %s; give useless, gone, unfinished, all, or at least 4 digits of a key that "
                   "`krasis cache list` shows",
                   word, hits > 1 ? "several keys begin so" : "no key begins so");
}

/* ---- actions */

static int list(const ks_cache_items *x, ks_config *c, const ks_cli *cli, ks_err *err)
{
    uint64_t sum = 0, useless = 0;
    (void)c;
    if (cli->n_words > 1) return ks_fail(err, KS_E_CONFIG, "cache list takes no words: '%.64s'", cli->words[1]);
    if (x->n > 0) print_head();
    for (size_t i = 0; i < x->n; i++) {
        print_item(&x->item[i]);
        sum += x->item[i].bytes;
        if (is_useless(&x->item[i])) useless += x->item[i].bytes;
    }
    printf("%zu in '%s', %.1f MB", x->n, x->dir, (double)sum / 1e6);
    if (useless) printf("; `krasis cache clean --yes` frees %.1f MB", (double)useless / 1e6);
    printf("\n");
    return 0;
}

static int clean(const ks_cache_items *x, ks_config *c, const ks_cli *cli, ks_err *err)
{
    const bool yes = ks_config_bool(c, "yes");
    uint64_t sum = 0;
    size_t n = 0;
    bool *marked = ks_calloc(x->n + 1, sizeof *marked);
    if (!marked) return ks_fail(err, KS_E_NOMEM, "out of memory");
    int rc = cli->n_words < 2 ? mark(x, groups[0].word, marked, err) : 0;
    for (uint32_t i = 1; i < cli->n_words && rc == 0; i++) rc = mark(x, cli->words[i], marked, err);
    for (size_t i = 0; i < x->n && rc == 0; i++) {
        if (!marked[i]) continue;
        if (n++ == 0) print_head();
        print_item(&x->item[i]);
        sum += x->item[i].bytes;
        if (yes) rc = ks_cache_remove(x, &x->item[i], err);
    }
    free(marked);
    if (rc != 0) return rc;
    if (n == 0)
        printf("nothing to remove in '%s'\n", x->dir);
    else if (yes)
        printf("%zu removed, %.1f MB\n", n, (double)sum / 1e6);
    else
        printf("%zu would be removed, %.1f MB: the same command with --yes does it\n", n, (double)sum / 1e6);
    return 0;
}

static const struct {
    const char *word;
    int (*run)(const ks_cache_items *x, ks_config *c, const ks_cli *cli, ks_err *err);
} actions[] = { { "list", list }, { "clean", clean } };

static const char *action_name(const void *ctx, uint32_t i)
{
    (void)ctx;
    return actions[i].word;
}

int ks_cmd_cache(ks_config *c, ks_cli *cli)
{
    const char *word = cli->n_words ? cli->words[0] : "list", *dir = ks_config_str(c, "cache-dir");
    ks_err err = { 0 };
    ks_cache_items x;
    for (size_t i = 0; i < KS_COUNT(actions); i++) {
        if (strcmp(actions[i].word, word) != 0) continue;
        int rc = ks_cache_list(*dir ? dir : NULL, &x, &err);
        if (rc != 0) return ks_app_fail(&err);
        rc = actions[i].run(&x, c, cli, &err);
        ks_cache_items_fini(&x);
        return rc ? ks_app_fail(&err) : 0;
    }
    const char *near = ks_name_nearest(word, KS_COUNT(actions), action_name, NULL);
    (void)ks_fail(&err, KS_E_CONFIG, "cache '%.64s': %s%s%s", word, near ? "did you mean '" : "one of list, clean",
                  near ? near : "", near ? "'?" : ""); /* reported below */
    return ks_app_fail(&err);
}
