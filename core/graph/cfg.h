/* config.json as a table of typed values, read strictly.
 *
 * Getters name the field in their error, keep the first error (`rc`, and the caller's ks_err), and mark the field as
 * understood. What no getter asked for and no table calls harmless is an error in ks__cfg_finish: a field that would
 * change the result is never ignored. Memory belongs to the arena. [main] */
#ifndef KS_GRAPH_CFG_H
#define KS_GRAPH_CFG_H

#include "base/arena.h"
#include <krasis/error.h>
#include <stdbool.h>

enum { KS_CFG_NULL = 1, KS_CFG_BOOL, KS_CFG_NUMBER, KS_CFG_STRING, KS_CFG_ARRAY, KS_CFG_OBJECT };

typedef struct ks_cfg_node {
    uint8_t kind;
    bool is_int, used;
    uint32_t child, next; /* node index, 0: none */
    const char *key;      /* NULL in an array */
    const char *str;
    int64_t i; /* integers and booleans */
    double f;
} ks_cfg_node;

typedef struct ks_cfg {
    ks_arena *arena;
    ks_cfg_node *nodes; /* node 0 is never used */
    uint32_t n_nodes, cap_nodes;
    uint32_t root; /* the whole document */
    uint32_t at;   /* the object that getters look into: the text part */
    int rc;
    ks_err *err;
} ks_cfg;

/* Parses; c->at becomes the text part (text_config or language_config where there is one, else the whole). */
KS_MUST_CHECK int ks__cfg_parse(ks_cfg *c, ks_arena *arena, const char *text, size_t n, ks_err *err);
/* Keeps the first error. Returns its code. */
KS_PRINTF(3, 4) int ks__cfg_fail(ks_cfg *c, int code, const char *fmt, ...);

const ks_cfg_node *ks__cfg_find(const ks_cfg *c, const char *key); /* NULL: absent or null; does not mark it */
/* As ks__cfg_find, but of that kind and marked as understood; another kind is an error. */
const ks_cfg_node *ks__cfg_get(ks_cfg *c, const char *key, int kind);

/* Required, and with a default for an absent or null field. Bounds are inclusive. */
uint32_t ks__cfg_u32(ks_cfg *c, const char *key, uint32_t min, uint32_t max);
uint32_t ks__cfg_u32_or(ks_cfg *c, const char *key, uint32_t dflt, uint32_t min, uint32_t max);
double ks__cfg_f64_or(ks_cfg *c, const char *key, double dflt, double min, double max);
bool ks__cfg_bool_or(ks_cfg *c, const char *key, bool dflt);
const char *ks__cfg_str_or(ks_cfg *c, const char *key, const char *dflt);
/* Of an array: element i as an integer in bounds, as text, as a number. `len`: how long it must be. */
bool ks__cfg_list(ks_cfg *c, const char *key, uint32_t len, const ks_cfg_node **ret_first); /* false: absent or error */
uint32_t ks__cfg_len(const ks_cfg *c, const ks_cfg_node *array);
const ks_cfg_node *ks__cfg_elem(const ks_cfg *c, const ks_cfg_node *array, uint32_t i);
uint32_t ks__cfg_elem_u32(ks_cfg *c, const char *key, const ks_cfg_node *n, uint32_t min, uint32_t max);
const char *ks__cfg_elem_str(ks_cfg *c, const char *key, const ks_cfg_node *n);
double ks__cfg_elem_f64(ks_cfg *c, const char *key, const ks_cfg_node *n);

/* The field must be absent, null, false, 0 or empty: anything else is not implemented. */
void ks__cfg_off(ks_cfg *c, const char *key);
/* The field must be absent, null or this value. */
void ks__cfg_only_bool(ks_cfg *c, const char *key, bool value);
void ks__cfg_only_u32(ks_cfg *c, const char *key, uint32_t value);
void ks__cfg_only_str(ks_cfg *c, const char *key, const char *value);
/* The field has no influence in this family. */
void ks__cfg_ignore(ks_cfg *c, const char *key);
/* An error that lists the fields nobody understood. */
int ks__cfg_finish(ks_cfg *c, const char *family);

#endif
