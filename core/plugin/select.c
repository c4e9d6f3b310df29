/* Choosing: what the user names, else the best score, else the name; and the kernel table that is merged of the rows of
 * all chosen kernel plugins. Never the order of a folder. */
#include "base/base.h"
#include "plugin/impl.h"

struct ks_kernel_table {
    struct row {
        ks_kernel k;
        const char *plugin;
        int64_t score; /* plugin + row */
        uint32_t rank; /* the settings' order, before any score */
    } * row;
    uint32_t n;
};

static const char *const kind_names[] = { "?", "kernels", "device", "loader", "frontend" };

bool ks__better(const ks_entry *a, const ks_entry *b)
{
    return a->pub.score != b->pub.score ? a->pub.score > b->pub.score : strcmp(a->name, b->name) < 0;
}

static void chose(ks_entry *e, const char *why)
{
    if (e->pub.state != KS_PLUGIN_OPEN) e->pub.state = KS_PLUGIN_CHOSEN;
    (void)snprintf(e->pub.why, sizeof e->pub.why, "%s", why);
}

/* Kernel plugins complement each other row by row: all usable ones take part. Of the other kinds the best is taken. */
static int choose_auto(ks_registry *r, uint32_t kind, ks_err *err)
{
    ks_entry *best = NULL;
    for (uint32_t i = 0; i < r->n; i++) {
        ks_entry *e = r->entry[i];
        if (e->pub.state == KS_PLUGIN_REFUSED || e->pub.desc.kind != kind) continue;
        if (!best || ks__better(e, best)) best = e;
        if (kind == KS_KIND_KERNELS) chose(e, "fills in the rows that better ones lack");
    }
    if (!best)
        return ks_fail(err, KS_E_NOTFOUND, "no usable %s plugin was found (see `krasis plugins`)", kind_names[kind]);
    chose(best, "best score");
    return 0;
}

static int choose_one(ks_registry *r, uint32_t kind, const char *want, uint32_t rank, ks_err *err)
{
    ks_entry *e = strchr(want, '/') ? ks__registry_at(r, want) : (ks_entry *)ks_registry_find(r, want);
    if (!e && strchr(want, '/')) {
        ks_plugin_entry *added = NULL;
        int rc = ks_registry_add_file(r, want, &added, err);
        if (rc) return rc;
        e = (ks_entry *)added; /* pub is its first member */
    }
    if (!e) {
        char known[160] = "";
        for (uint32_t i = 0; i < r->n; i++)
            if (r->entry[i]->pub.desc.kind == kind && strlen(known) + strlen(r->entry[i]->name) + 3 < sizeof known) {
                strcat(known, known[0] ? ", " : "");
                strcat(known, r->entry[i]->name);
            }
        return ks_fail(err, KS_E_CONFIG, "there is no %s plugin '%s': found are %s", kind_names[kind], want,
                       known[0] ? known : "none");
    }
    if (e->pub.state == KS_PLUGIN_REFUSED)
        return ks_fail(err, KS_E_CONFIG, "plugin '%s' cannot be used: %s", want, e->pub.why);
    if (e->pub.desc.kind != kind)
        return ks_fail(err, KS_E_CONFIG, "plugin '%s' is of the kind '%s', not '%s'", want,
                       kind_names[e->pub.desc.kind], kind_names[kind]);
    chose(e, "named in the settings");
    if (!e->rank) e->rank = rank;
    return 0;
}

bool ks__next_word(const char **list, char *ret, size_t cap)
{
    const char *s = *list + strspn(*list, ", ");
    size_t n = strcspn(s, ",");
    *list = s + n;
    while (n && s[n - 1] == ' ') n--;
    (void)snprintf(ret, cap, "%.*s", (int)KS_MIN(n, cap - 1), s);
    return n > 0;
}

int ks_registry_choose(ks_registry *r, uint32_t kind, const char *want, ks_err *err)
{
    KS_ASSERT(kind > 0 && kind < KS_COUNT(kind_names));
    for (uint32_t i = 0; i < r->n; i++) { /* a second call starts anew */
        if (r->entry[i]->pub.desc.kind != kind) continue;
        if (r->entry[i]->pub.state == KS_PLUGIN_CHOSEN) r->entry[i]->pub.state = KS_PLUGIN_USABLE;
        r->entry[i]->rank = 0;
    }
    bool none = strcmp(want, "none") == 0;
    if (!*want || strcmp(want, "auto") == 0) return choose_auto(r, kind, err);
    char one[4096];
    for (uint32_t rank = 1; !none && ks__next_word(&want, one, sizeof one); rank++) {
        int rc = choose_one(r, kind, one, rank, err);
        if (rc) return rc;
    }
    ks_entry *ref = (ks_entry *)ks_registry_find(r, "ref");
    if (kind == KS_KIND_KERNELS && ref && ref->pub.state == KS_PLUGIN_USABLE) {
        chose(ref, none ? "the settings name no plugin" : "serves the rows that the named ones lack");
        ref->rank = UINT32_MAX;
    }
    return 0;
}

/* ---- the kernel table */

static uint64_t key(const ks_kernel *k)
{
    return (uint64_t)k->op << 48 | (uint64_t)k->wtype << 32 | (uint64_t)k->xtype << 16 | k->layout;
}

static void add_row(ks_kernel_table *t, const ks_kernel *k, const ks_entry *e)
{
    struct row new = { *k, e->name, (int64_t)e->pub.score + k->score, e->rank };
    for (uint32_t i = 0; i < t->n; i++) {
        struct row *old = &t->row[i];
        if (key(&old->k) != key(k)) continue;
        bool better = new.rank != old->rank     ? new.rank < old->rank
                      : new.score != old->score ? new.score > old->score
                                                : strcmp(new.plugin, old->plugin) < 0;
        if (better) *old = new;
        return;
    }
    t->row[t->n++] = new;
}

static int by_key(const void *a, const void *b)
{
    uint64_t x = key(&((const struct row *)a)->k), y = key(&((const struct row *)b)->k);
    return x < y ? -1 : x > y;
}

static bool takes_part(const ks_entry *e)
{
    return e->pub.desc.kind == KS_KIND_KERNELS && (e->pub.state == KS_PLUGIN_CHOSEN || e->pub.state == KS_PLUGIN_OPEN);
}

/* Says behind the reason of the choice what came of it. */
static void tell_rows(const ks_kernel_table *t, ks_entry *e)
{
    char why[sizeof e->pub.why];
    uint32_t used = 0;
    for (uint32_t i = 0; i < t->n; i++) used += t->row[i].plugin == e->name;
    (void)snprintf(why, sizeof why, "%s", e->pub.why);
    char *old = strstr(why, " (rows used: "); /* of an earlier table */
    if (old) *old = 0;
    ks__say(e, "%.200s (rows used: %u of %u)", why, used, e->iface.kernels.n_kernels);
}

int ks_kernel_table_new(ks_registry *r, ks_kernel_table **ret, ks_err *err)
{
    size_t total = 0;
    for (uint32_t i = 0; i < r->n; i++)
        if (r->entry[i]->pub.desc.kind == KS_KIND_KERNELS && r->entry[i]->loaded)
            total += r->entry[i]->iface.kernels.n_kernels;
    ks_kernel_table *t = ks_calloc(1, sizeof *t);
    if (!t || !(t->row = ks_calloc(total + 1, sizeof *t->row))) {
        free(t);
        return ks_fail(err, KS_E_NOMEM, "out of memory for the kernel table");
    }
    for (uint32_t i = 0; i < r->n; i++) {
        const ks_entry *e = r->entry[i];
        if (!takes_part(e)) continue;
        for (uint32_t k = 0; k < e->iface.kernels.n_kernels; k++)
            if (!(e->rows[k].cpu_required & ~r->o.cpu)) add_row(t, &e->rows[k], e);
    }
    qsort(t->row, t->n, sizeof *t->row, by_key);
    for (uint32_t i = 0; i < r->n; i++)
        if (takes_part(r->entry[i])) tell_rows(t, r->entry[i]);
    *ret = t;
    return 0;
}

void ks_kernel_table_free(ks_kernel_table *t)
{
    if (!t) return;
    free(t->row);
    free(t);
}

const ks_kernel *ks_kernel_find(const ks_kernel_table *t, uint32_t op, uint32_t wtype, uint32_t xtype, uint32_t layout)
{
    for (uint32_t i = 0; i < t->n; i++) {
        const ks_kernel *k = &t->row[i].k;
        if (k->op == op && k->wtype == wtype && k->xtype == xtype && k->layout == layout) return k;
    }
    return NULL;
}

size_t ks_kernel_scratch(const ks_kernel_table *t)
{
    size_t n = 0;
    for (uint32_t i = 0; i < t->n; i++) n = KS_MAX(n, (size_t)t->row[i].k.scratch_bytes);
    return n;
}

const ks_kernel *ks_kernel_row(const ks_kernel_table *t, uint32_t i, const char **ret_plugin)
{
    if (i >= t->n) return NULL;
    if (ret_plugin) *ret_plugin = t->row[i].plugin;
    return &t->row[i].k;
}
