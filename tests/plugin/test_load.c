/* Loading one file: every broken plugin is one sentence, and the sentence is the right one. */
#include "cpu/cpu.h"
#include "plugin/elf.h"
#include "plugin/plugin.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define FIXTURE(name) KS_FIXTURE_DIR "/" name ".so"

static ks_registry *registry_of(uint64_t cpu)
{
    ks_registry_opts o = { .cpu = cpu };
    ks_registry *r = NULL;
    assert_int_equal(ks_registry_open(&o, &r, NULL), 0);
    return r;
}

/* Loads the file alone and compares state and reason. */
static void expect(const char *path, int state, const char *why)
{
    ks_registry *r = registry_of(ks_cpu_features());
    ks_plugin_entry *e = NULL;
    assert_int_equal(ks_registry_add_file(r, path, &e, NULL), 0);
    if (e->state != state || strcmp(e->why, why) != 0)
        fail_msg("%s: state %d, '%s', expected %d, '%s'", path, e->state, e->why, state, why);
    ks_registry_close(r);
}

static void refused(const char *path, const char *why)
{
    expect(path, KS_PLUGIN_REFUSED, why);
}

static void a_good_plugin_is_usable(void **state)
{
    (void)state;
    expect(FIXTURE("good-loader"), KS_PLUGIN_USABLE, "is taken for the files whose content it knows");
    expect(FIXTURE("good-kernels"), KS_PLUGIN_USABLE, "not chosen");
}

static void the_wrong_abi_major_is_named(void **state)
{
    (void)state;
    refused(FIXTURE("bad-abi-major"),
            "it is built for plugin ABI 2, this program speaks 1: build it against this version's SDK");
}

static void a_library_that_is_no_plugin_is_told_so(void **state)
{
    (void)state;
    refused(FIXTURE("bad-no-symbol"), "it does not export 'krasis_plugin_v1': it is no krasis plugin");
    refused(FIXTURE("bad-function"), "its 'krasis_plugin_v1' is no data: it must be a constant ks_plugin");
}

static void a_name_must_be_that_of_the_file(void **state)
{
    (void)state;
    refused(FIXTURE("bad-name"), "its name is 'someone-else', but the file is 'bad-name.so': they must be equal");
    refused(FIXTURE("bad-name-letters"), "its name is 'Bad Name': 2 to 31 of a-z, 0-9 and '-' are allowed");
}

static void descriptor_fields_are_checked(void **state)
{
    char why[128];
    (void)state;
    refused(FIXTURE("bad-version"), "its descriptor has no version of 1 to 31 characters in one line");
    refused(FIXTURE("bad-kind"), "its kind is 99, which this program does not know");
    (void)snprintf(why, sizeof why, "its descriptor says it has 16 bytes: allowed is %zu to 65536",
                   offsetof(ks_plugin, iface) + sizeof(void *));
    refused(FIXTURE("bad-size-small"), why);
    (void)snprintf(why, sizeof why, "its descriptor says it has 4096 bytes, but the symbol has %zu", sizeof(ks_plugin));
    refused(FIXTURE("bad-size-beyond"), why);
    refused(FIXTURE("bad-no-iface"), "its descriptor has no interface");
    refused(FIXTURE("bad-iface-function"), "it is a loader but its interface has no read()");
    refused(FIXTURE("bad-kernel-row"), "kernel row 0 has no function");
    refused(FIXTURE("bad-option"), "option 'far' lies at byte 64 of an options struct of 16");
    refused(FIXTURE("bad-option-default"),
            "the default of its option 'n' is wrong: 12 is out of range: allowed is 0 to 9");
}

static void a_cpu_feature_is_missed_before_any_code_runs(void **state)
{
    (void)state; /* both would die in their constructors */
    refused(FIXTURE("bad-cpu"), "it needs a CPU feature that this version does not know (bits 0x1000000000000000): "
                                "update krasis");
    ks_registry *r = registry_of(KS_CPU(AVX2) | KS_CPU(AVX512F));
    ks_plugin_entry *e = NULL;
    assert_int_equal(ks_registry_add_file(r, FIXTURE("bad-cpu-amx"), &e, NULL), 0);
    assert_string_equal(e->why, "this CPU lacks amx-tile");
    assert_int_equal(e->desc.kind, KS_KIND_LOADER);
    assert_null(dlopen(FIXTURE("bad-cpu-amx"), RTLD_NOW | RTLD_NOLOAD));
    ks_registry_close(r);
}

static void an_unresolved_symbol_is_the_linkers_sentence(void **state)
{
    (void)state;
    refused(FIXTURE("bad-unresolved"), FIXTURE("bad-unresolved") ": undefined symbol: a_function_of_no_library");
}

static void a_failing_probe_gives_its_reason(void **state)
{
    (void)state;
    refused(FIXTURE("bad-probe"), "the card in slot 3 does not answer: reboot");
}

static void a_failing_open_gives_its_reason(void **state)
{
    ks_registry *r = registry_of(ks_cpu_features());
    ks_plugin_entry *e = NULL;
    ks_err err = { 0 };
    (void)state;
    assert_int_equal(ks_registry_add_file(r, FIXTURE("bad-open"), &e, NULL), 0);
    assert_int_equal(ks_registry_start(r, e, &err), KS_E_LIMIT);
    assert_string_equal(err.msg, "plugin 'bad-open' did not open: all 4 seats are taken");
    assert_int_equal(e->state, KS_PLUGIN_REFUSED);
    assert_null(e->self);
    assert_int_equal(ks_registry_start(r, e, &err), KS_E_STATE);
    assert_string_equal(err.msg, "plugin 'bad-open' cannot be used: all 4 seats are taken");
    ks_registry_close(r);
}

static void a_newer_plugin_works(void **state)
{
    ks_registry *r = registry_of(0);
    ks_plugin_entry *e = NULL;
    ks_kernel_table *t = NULL;
    (void)state;
    assert_int_equal(ks_registry_add_file(r, FIXTURE("good-future"), &e, NULL), 0);
    assert_string_equal(e->why, "a 5 b 6");
    assert_int_equal(ks_registry_choose(r, KS_KIND_KERNELS, "auto", NULL), 0);
    assert_int_equal(ks_kernel_table_new(r, &t, NULL), 0);
    const ks_kernel *k = ks_kernel_find(t, KS_K_NORM, 0, KS_T_F32, 0);
    assert_non_null(k);
    assert_string_equal(k->name, "norm");
    assert_string_equal(ks_kernel_find(t, 9999, 777, 778, 9)->name, "of-tomorrow");
    ks_kernel_table_free(t);
    ks_registry_close(r);
}

static void an_older_plugin_works(void **state)
{
    ks_registry *r = registry_of(0);
    ks_plugin_entry *e = NULL;
    (void)state;
    assert_int_equal(ks_registry_add_file(r, FIXTURE("good-old"), &e, NULL), 0);
    assert_int_equal(e->state, KS_PLUGIN_USABLE);
    assert_int_equal(e->score, 5);
    assert_null(e->desc.probe);
    assert_null(e->desc.ext);
    assert_int_equal(ks_registry_start(r, e, NULL), 0);
    ks_registry_close(r);
}

/* ---- files that never were plugins; made in the test's own folder */

static size_t read_good(uint8_t *dst, size_t cap)
{
    FILE *f = fopen(FIXTURE("good-loader"), "re");
    assert_non_null(f);
    size_t n = fread(dst, 1, cap, f);
    assert_int_equal(fclose(f), 0);
    assert_true(n > 1000 && n < cap);
    return n;
}

static const char *write_file(const char *name, const void *p, size_t n)
{
    static char path[256];
    (void)snprintf(path, sizeof path, "./%s", name);
    (void)unlink(path); /* a file of an earlier run, with other rights */
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(chmod(path, 0644), 0);
    return path;
}

static uint8_t good[4 << 20]; /* the file under knife: a sanitizer makes it large */

static void a_file_cut_anywhere_is_refused(void **state)
{
    size_t n = read_good(good, sizeof good);
    (void)state;
    for (size_t cut = 0; cut < n; cut += cut < 256 ? 7 : n / 61) {
        ks_registry *r = registry_of(ks_cpu_features());
        ks_plugin_entry *e = NULL;
        assert_int_equal(ks_registry_add_file(r, write_file("cut.so", good, cut), &e, NULL), 0);
        assert_int_equal(e->state, KS_PLUGIN_REFUSED);
        if (cut >= 64 && !strstr(e->why, "the file is truncated: ")) fail_msg("cut at %zu: '%s'", cut, e->why);
        if (cut < 4) assert_string_equal(e->why, "it is no shared object: the file does not begin with an ELF header");
        ks_registry_close(r);
    }
}

static void the_place_of_the_cut_is_told(void **state)
{
    char why[160];
    size_t n = read_good(good, sizeof good);
    (void)state;
    (void)snprintf(why, sizeof why, "the file is truncated: the section header table ends at byte %zu, the file at %zu",
                   n, n - 1);
    refused(write_file("cut.so", good, n - 1), why);
}

static void a_text_file_is_no_shared_object(void **state)
{
    const char *why = "it is no shared object: the file does not begin with an ELF header";
    (void)state;
    refused(write_file("text.so", "# a script\n", 11), why);
    refused(write_file("empty.so", "", 0), why);
}

static void another_machine_is_named(void **state)
{
    size_t n = read_good(good, sizeof good);
    (void)state;
    good[18] = 183; /* AArch64 */
    refused(write_file("arm.so", good, n),
            "it is built for another machine: ELF machine 183 with 64 bits, this program is x86-64");
    (void)read_good(good, sizeof good);
    good[16] = 2; /* an executable */
    refused(write_file("exec.so", good, n), "it is an ELF file of type 2, no shared object");
}

static void random_damage_never_crashes_the_reader(void **state)
{
    size_t n = read_good(good, sizeof good);
    uint32_t x = 12345;
    (void)state;
    for (int round = 0; round < 300; round++) {
        ks_elf e;
        uint64_t v;
        for (int i = 0; i < 8; i++) { /* headers and tables are where it hurts */
            x = x * 1664525u + 1013904223u;
            size_t at = (x >> 8) % (i < 4 ? 512 : n);
            good[at] = (uint8_t)(x >> 24);
        }
        memcpy(good, "\177ELF\2\1\1", 7);
        if (ks_elf_open(&e, write_file("random.so", good, n), NULL) == 0) {
            const Elf64_Sym *s = ks_elf_find(&e, "krasis_plugin_v1");
            if (s && ks_elf_read(&e, s->st_value, &v, sizeof v, NULL) == 0) (void)ks_elf_n_constructors(&e);
            ks_elf_close(&e);
        }
        if (round % 10 == 9) (void)read_good(good, sizeof good);
    }
}

static void what_others_may_write_is_refused(void **state)
{
    size_t n = read_good(good, sizeof good);
    (void)state;
    const char *path = write_file("good-loader.so", good, n);
    expect(path, KS_PLUGIN_USABLE, "is taken for the files whose content it knows");
    assert_int_equal(chmod(path, 0666), 0);
    refused(path, "the file may be written by everybody: chmod o-w");
    assert_int_equal(chmod(path, 0644), 0);
    assert_int_equal(chmod(".", 0777), 0);
    refused(path, "its folder may be written by everybody: chmod o-w");
    assert_int_equal(chmod(".", 0755), 0);
}

static void the_place_a_link_leads_to_counts_too(void **state)
{
    size_t n = read_good(good, sizeof good);
    (void)state;
    (void)mkdir("open", 0755); /* may be there from an earlier run */
    (void)unlink("good-loader.so");
    (void)write_file("open/good-loader.so", good, n);
    assert_int_equal(symlink("open/good-loader.so", "good-loader.so"), 0);
    expect("./good-loader.so", KS_PLUGIN_USABLE, "is taken for the files whose content it knows");
    assert_int_equal(chmod("open", 0777), 0);
    refused("./good-loader.so", "its folder may be written by everybody: chmod o-w");
    assert_int_equal(chmod("open", 0755), 0);
}

static void what_belongs_to_a_stranger_is_refused(void **state)
{
    size_t n = read_good(good, sizeof good);
    (void)state;
    if (geteuid() != 0) {
        print_message("skipped: only root can give a file away\n");
        skip();
    }
    const char *path = write_file("good-loader.so", good, n);
    assert_int_equal(chown(path, 4242, 4242), 0);
    refused(path, "the file belongs to user 4242, neither to root nor to you");
}

static void what_is_no_file_is_refused(void **state)
{
    (void)state;
    (void)unlink("pipe.so"); /* of an earlier run */
    (void)rmdir("folder.so");
    assert_int_equal(mkfifo("pipe.so", 0600), 0);
    refused("./pipe.so", "it is no regular file"); /* and does not wait for a writer */
    assert_int_equal(mkdir("folder.so", 0755), 0);
    refused("./folder.so", "it is no regular file");
    refused("./nowhere.so", "it cannot be examined: No such file or directory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_plugin_is_usable),
        cmocka_unit_test(the_wrong_abi_major_is_named),
        cmocka_unit_test(a_library_that_is_no_plugin_is_told_so),
        cmocka_unit_test(a_name_must_be_that_of_the_file),
        cmocka_unit_test(descriptor_fields_are_checked),
        cmocka_unit_test(a_cpu_feature_is_missed_before_any_code_runs),
        cmocka_unit_test(an_unresolved_symbol_is_the_linkers_sentence),
        cmocka_unit_test(a_failing_probe_gives_its_reason),
        cmocka_unit_test(a_failing_open_gives_its_reason),
        cmocka_unit_test(a_newer_plugin_works),
        cmocka_unit_test(an_older_plugin_works),
        cmocka_unit_test(a_file_cut_anywhere_is_refused),
        cmocka_unit_test(the_place_of_the_cut_is_told),
        cmocka_unit_test(a_text_file_is_no_shared_object),
        cmocka_unit_test(another_machine_is_named),
        cmocka_unit_test(random_damage_never_crashes_the_reader),
        cmocka_unit_test(what_others_may_write_is_refused),
        cmocka_unit_test(the_place_a_link_leads_to_counts_too),
        cmocka_unit_test(what_belongs_to_a_stranger_is_refused),
        cmocka_unit_test(what_is_no_file_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
