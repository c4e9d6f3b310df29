/* Loading: every way gives the same bytes, and none of them believes a damaged file. */
#include "store/load.h"
#include "util.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_NAME "load.kw"
#define OFFSET 8192u
#define N_BLOCKS 400u

/* A cache file without a model: blocks of odd sizes and in no order, some with gaps, some larger than a piece. */
typedef struct fixture {
    ks_wplan plan;
    ks_pweight weight;
    ks_cache cache;
    uint8_t *bytes, *arena;
} fixture;

static void lay_out(fixture *f)
{
    uint64_t seed = 7, at = 0;
    f->plan.n_blocks = N_BLOCKS;
    f->plan.blocks = calloc(N_BLOCKS, sizeof *f->plan.blocks);
    f->cache.table = calloc(N_BLOCKS, sizeof *f->cache.table);
    assert_true(f->plan.blocks && f->cache.table);
    for (uint32_t i = 0; i < N_BLOCKS; i++) {
        uint32_t k = i * 77 % N_BLOCKS; /* 77 and 400 have no common factor */
        uint32_t n = i == 100 ? 5000064 : 64 + (uint32_t)(ks_splitmix64(&seed) % 100000) / 64 * 64;
        if (i % 50 == 0) at = ks_align_up(at, (size_t)64 << 10);
        f->plan.blocks[k] = (ks_block) { .off = at, .bytes = n };
        at += n;
    }
    f->plan.payload_bytes = ks_align_up(at, 4096);
}

static int make(void **state)
{
    static fixture f;
    static char path[] = FILE_NAME;
    uint64_t seed = 1;
    memset(&f, 0, sizeof f);
    lay_out(&f);
    const size_t n = f.plan.payload_bytes;
    f.bytes = malloc(n);
    f.arena = aligned_alloc(4096, n);
    assert_true(f.bytes && f.arena);
    for (size_t i = 0; i < n; i += 8) {
        uint64_t v = ks_splitmix64(&seed);
        memcpy(f.bytes + i, &v, 8);
    }
    for (uint32_t i = 0; i < N_BLOCKS; i++) {
        ks_hash128 h = ks_hash(f.bytes + f.plan.blocks[i].off, f.plan.blocks[i].bytes);
        f.cache.table[i] = (ks_cache_block) { .lo = h.lo, .hi = h.hi };
    }
    f.weight.w.name = "w";
    f.plan.weights = &f.weight;
    f.cache.plan = &f.plan;
    f.cache.path = path;
    f.cache.payload_off = OFFSET;
    f.cache.file_bytes = OFFSET + n;
    f.cache.fd = open(FILE_NAME, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(f.cache.fd >= 0);
    assert_int_equal(pwrite(f.cache.fd, f.bytes, n, OFFSET), n);
    *state = &f;
    return 0;
}

static int drop(void **state)
{
    fixture *f = *state;
    free(f->plan.blocks);
    free(f->cache.table);
    free(f->bytes);
    free(f->arena);
    (void)close(f->cache.fd);
    return unlink(FILE_NAME);
}

static const uint32_t modes[] = { KS_LOAD_AUTO, KS_LOAD_CACHED, KS_LOAD_DIRECT };

static void expect_blocks(const fixture *f)
{
    for (uint32_t i = 0; i < N_BLOCKS; i++) {
        const ks_block *b = &f->plan.blocks[i];
        assert_memory_equal(f->arena + b->off, f->bytes + b->off, b->bytes);
    }
}

static void every_way_gives_the_bytes_of_the_file(void **state)
{
    fixture *f = *state;
    for (size_t i = 0; i < KS_COUNT(modes); i++) {
        for (uint32_t n = 1; n <= 3; n += 2) {
            ks_err err;
            ks_load_stats st;
            ks_load_opts o = { .mode = modes[i], .n_threads = n };
            memset(f->arena, 0xee, f->plan.payload_bytes);
            assert_ok(fsync(f->cache.fd), &err);
            assert_int_equal(posix_fadvise(f->cache.fd, 0, 0, i % 2 ? POSIX_FADV_DONTNEED : POSIX_FADV_NORMAL), 0);
            assert_ok(ks__load(&f->cache, f->arena, &o, &st, &err), &err);
            expect_blocks(f);
            assert_int_equal(st.bytes, f->plan.payload_bytes);
            assert_true(st.n_threads >= n && st.warm >= 0 && st.warm <= 1);
            assert_true(modes[i] == KS_LOAD_DIRECT || !st.direct); /* so small a file fits beside itself */
        }
    }
}

/* After a read through the page cache it is warm, and no more threads than cores are used. */
static void what_fits_is_kept_for_the_next_start(void **state)
{
    fixture *f = *state;
    ks_err err;
    ks_load_stats st;
    ks_load_opts o = { .mode = KS_LOAD_AUTO, .n_threads = 2 };
    assert_ok(ks__load(&f->cache, f->arena, &o, NULL, &err), &err);
    assert_ok(ks__load(&f->cache, f->arena, &o, &st, &err), &err);
    assert_true(st.warm > 0.9 && st.n_threads == 2 && !st.direct && !st.dropped);
}

static void a_flipped_byte_is_found_in_every_way(void **state)
{
    fixture *f = *state;
    const uint32_t at[] = { 0, 63, N_BLOCKS / 2, N_BLOCKS - 1 };
    for (size_t m = 0; m < KS_COUNT(modes); m++) {
        for (size_t i = 0; i < KS_COUNT(at); i++) {
            ks_err err = { .code = 0 };
            ks_load_opts o = { .mode = modes[m], .n_threads = 2 };
            uint64_t off = f->plan.blocks[at[i]].off + f->plan.blocks[at[i]].bytes - 1;
            uint8_t bad = f->bytes[off] ^ 1;
            char want[80];
            (void)snprintf(want, sizeof want, "'" FILE_NAME "': the bytes from %llu to %llu (weight 'w') are damaged",
                           (unsigned long long)(OFFSET + f->plan.blocks[at[i]].off),
                           (unsigned long long)(OFFSET + off));
            assert_int_equal(pwrite(f->cache.fd, &bad, 1, (off_t)(OFFSET + off)), 1);
            assert_int_equal(ks__load(&f->cache, f->arena, &o, NULL, &err), KS_E_FORMAT);
            assert_string_equal(err.msg, want);
            assert_int_equal(pwrite(f->cache.fd, &f->bytes[off], 1, (off_t)(OFFSET + off)), 1);
        }
    }
}

static void a_file_that_shrank_is_an_error(void **state)
{
    fixture *f = *state;
    const off_t whole = (off_t)f->cache.file_bytes, cut = whole / 2 + 100;
    for (size_t m = 0; m < KS_COUNT(modes); m++) {
        ks_err err = { .code = 0 };
        ks_load_opts o = { .mode = modes[m], .n_threads = 2 };
        assert_int_equal(ftruncate(f->cache.fd, cut), 0);
        assert_int_equal(ks__load(&f->cache, f->arena, &o, NULL, &err), KS_E_FORMAT);
        assert_contains(err.msg, "'" FILE_NAME "' ends at byte ");
        assert_int_equal(pwrite(f->cache.fd, f->bytes, f->plan.payload_bytes, OFFSET), f->plan.payload_bytes);
    }
}

/* O_DIRECT goes by the name; what lies there now need not be the file that was checked. */
static void another_file_of_that_name_is_not_read(void **state)
{
    fixture *f = *state;
    ks_err err;
    ks_load_stats st;
    ks_load_opts o = { .mode = KS_LOAD_DIRECT, .n_threads = 2 };
    assert_int_equal(unlink(FILE_NAME), 0);
    assert_ok(ks_file_write(FILE_NAME, "x", 1, &err), &err);
    memset(f->arena, 0xee, f->plan.payload_bytes);
    assert_ok(ks__load(&f->cache, f->arena, &o, &st, &err), &err);
    assert_false(st.direct);
    expect_blocks(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_way_gives_the_bytes_of_the_file, make, drop),
        cmocka_unit_test_setup_teardown(what_fits_is_kept_for_the_next_start, make, drop),
        cmocka_unit_test_setup_teardown(a_flipped_byte_is_found_in_every_way, make, drop),
        cmocka_unit_test_setup_teardown(a_file_that_shrank_is_an_error, make, drop),
        cmocka_unit_test_setup_teardown(another_file_of_that_name_is_not_read, make, drop),
    };
    return cmocka_run_group_tests_name("cache_load", tests, NULL, NULL);
}
