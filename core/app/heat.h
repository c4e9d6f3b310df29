/* The heat map of a model: read at the start, made by calibration where there is none, kept while the model is served.
 * Whatever becomes of the file, the model runs: without it experts are placed as if all were alike. [main] */
#ifndef KS_APP_HEAT_H
#define KS_APP_HEAT_H

#include "engine/engine.h"
#include "store/heat_file.h"

struct ks_app;

#define KS_HEAT_TOKENS 10000u

typedef struct ks_heat {
    char *path;      /* NULL: there is no file to use */
    ks_heat_map map; /* as it was read or last written; counts NULL: none */
    bool keep;       /* adapted counts are saved */
    uint32_t tokens; /* that calibration reads, 0: KS_HEAT_TOKENS; of tests */
} ks_heat;

/* Before the engine opens: who places experts (--heat), and what is known about them. */
void ks_heat_prepare(struct ks_app *a, ks_engine_opts *o);
/* After it: where experts are placed and nothing is known, a text that comes with the program goes through the model.
 * An error is one of the model's step. */
KS_MUST_CHECK int ks_heat_calibrate(struct ks_app *a, ks_err *err);
/* Saves what has been learnt, if it has changed. What fails is a line in the log. */
void ks_heat_save(struct ks_app *a);
void ks_heat_fini(struct ks_app *a);

/* The text: UTF-8. conf/calibration.txt, as bytes in the program. */
extern const unsigned char ks_calibration_text[];
extern const size_t ks_calibration_bytes;

#endif
