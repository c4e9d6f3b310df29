/* Files: limits, messages with path and reason, writing that is whole or not at all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "base/base.h"
#include "base/file.h"
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "file-XXXXXX"; /* below the test's own folder */

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    char cmd[64];
    (void)snprintf(cmd, sizeof cmd, "rm -r %s", dir);
    return system(cmd);
}

static const char *in_dir(const char *name)
{
    static char path[256];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static int entries(void)
{
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    while (readdir(d)) n++;
    (void)closedir(d);
    return n;
}

static void check_content(const char *path, const char *want, size_t want_n)
{
    char *text = NULL;
    size_t n = 0;
    ks_err err;
    assert_int_equal(ks_file_read(path, 1 << 20, &text, &n, &err), 0);
    assert_int_equal(n, want_n);
    assert_memory_equal(text, want, n);
    assert_int_equal(text[n], 0);
    free(text);
}

static void what_was_written_is_read(void **state)
{
    (void)state;
    ks_err err;
    const char *path = in_dir("a");
    assert_int_equal(ks_file_write(path, "a\0b", 3, &err), 0);
    check_content(path, "a\0b", 3);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(ks_file_write(path, "longer text", 11, &err), 0);
    check_content(path, "longer text", 11);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640); /* its mode stays */
    assert_int_equal(ks_file_write(path, NULL, 0, &err), 0);
    check_content(path, "", 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(entries(), 2); /* no temporary file is left */
}

static void a_symbolic_link_stays_one(void **state)
{
    (void)state;
    ks_err err;
    char link[256];
    struct stat st;
    (void)snprintf(link, sizeof link, "%s/link", dir);
    const char *path = in_dir("target");
    assert_int_equal(ks_file_write(path, "old", 3, &err), 0);
    assert_int_equal(symlink("target", link), 0);
    assert_int_equal(ks_file_write(link, "new", 3, &err), 0);
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    check_content(path, "new", 3);
    assert_int_equal(unlink(link), 0);
    assert_int_equal(unlink(path), 0);
}

static void reading_fails_with_path_and_reason(void **state)
{
    (void)state;
    char *text = (char *)1;
    size_t n = 42;
    ks_err err;
    assert_int_equal(ks_file_read("no/such", 10, &text, &n, &err), KS_E_NOTFOUND);
    assert_string_equal(err.msg, "cannot open 'no/such': No such file or directory");
    assert_int_equal(ks_file_read(dir, 10, &text, &n, &err), KS_E_IO);
    assert_non_null(strstr(err.msg, "Is a directory"));
    const char *path = in_dir("big");
    assert_int_equal(ks_file_write(path, "0123456789", 10, &err), 0);
    assert_int_equal(ks_file_read(path, 9, &text, &n, &err), KS_E_LIMIT);
    assert_non_null(strstr(err.msg, "/big' is larger than the 9 bytes allowed for it"));
    assert_int_equal(ks_file_read("/dev/zero", 100000, &text, &n, &err), KS_E_LIMIT); /* endless */
    assert_ptr_equal(text, (char *)1);                                                /* written on success only */
    assert_int_equal(n, 42);
    assert_int_equal(ks_file_read(path, 10, &text, &n, &err), 0); /* exactly the limit */
    free(text);
    assert_int_equal(unlink(path), 0);
}

static void files_without_a_size_are_read_to_their_end(void **state)
{
    (void)state;
    char *text = NULL;
    size_t n = 0;
    ks_err err;
    assert_int_equal(ks_file_read("/proc/self/mountinfo", SIZE_MAX, &text, &n, &err), 0);
    assert_true(n > 0 && strlen(text) == n);
    free(text);
    assert_int_equal(ks_file_read("/dev/null", 0, &text, &n, &err), 0);
    assert_int_equal(n, 0);
    free(text);
}

static void a_full_disk_is_said_and_devices_are_not_replaced(void **state)
{
    (void)state;
    ks_err err;
    struct stat st;
    assert_int_equal(ks_file_write("/dev/full", "x", 1, &err), KS_E_LIMIT);
    assert_string_equal(err.msg, "cannot write '/dev/full': No space left on device");
    assert_int_equal(ks_file_write("/dev/null", "x", 1, &err), 0);
    assert_int_equal(stat("/dev/full", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
    assert_int_equal(stat("/dev/null", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
}

static void a_write_that_fails_half_way_leaves_the_old_file(void **state)
{
    (void)state;
    ks_err err;
    const char *path = in_dir("kept");
    static char big[100000];
    assert_int_equal(ks_file_write(path, "old", 3, &err), 0);
    int before = entries(), status = 0;
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) { /* the limit is the process's */
        const struct rlimit small = { 50000, 50000 };
        (void)signal(SIGXFSZ, SIG_IGN);
        if (setrlimit(RLIMIT_FSIZE, &small) != 0) _exit(1);
        _exit(ks_file_write(path, big, sizeof big, &err) != KS_E_LIMIT ? 2
              : !strstr(err.msg, "File too large")                     ? 3
                                                                       : 0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    check_content(path, "old", 3);
    assert_int_equal(entries(), before);
    assert_int_equal(unlink(path), 0);
}

static void writing_fails_with_path_and_reason(void **state)
{
    (void)state;
    ks_err err;
    assert_int_equal(ks_file_write("no/such/file", "x", 1, &err), KS_E_NOTFOUND);
    assert_string_equal(err.msg, "cannot write 'no/such/file': No such file or directory");
    assert_int_equal(ks_file_write(dir, "x", 1, &err), KS_E_IO);
    assert_non_null(strstr(err.msg, "Is a directory"));
    char longer[300];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    assert_int_equal(ks_file_write(longer, "x", 1, &err), KS_E_IO);
    assert_non_null(strstr(err.msg, "File name too long"));
}

static void folders_are_made_with_their_parents(void **state)
{
    (void)state;
    ks_err err;
    char deep[256];
    (void)snprintf(deep, sizeof deep, "%s//x/y/z/", dir);
    assert_int_equal(ks_mkdirs(deep, &err), 0);
    assert_int_equal(ks_mkdirs(deep, &err), 0); /* again is fine */
    assert_true(ks_dir_exists(deep));
    assert_false(ks_file_exists(deep));
    assert_int_equal(ks_mkdirs("/", &err), 0);
    assert_int_equal(ks_mkdirs("", &err), KS_E_NOTFOUND);
    const char *path = in_dir("x/file");
    assert_int_equal(ks_file_write(path, "", 0, &err), 0);
    assert_true(ks_file_exists(path));
    assert_false(ks_dir_exists(path));
    assert_int_equal(ks_mkdirs(in_dir("x/file/below"), &err), KS_E_IO);
    assert_non_null(strstr(err.msg, "/x/file': Not a directory"));
}

static void free_space_is_known_for_folders_to_come(void **state)
{
    (void)state;
    ks_err err;
    uint64_t here = 0, there = 0;
    assert_int_equal(ks_disk_free(dir, &here, &err), 0);
    assert_int_equal(ks_disk_free(in_dir("not/yet/there"), &there, &err), 0);
    assert_true(here > 0 && there > 0);
    assert_int_equal(ks_disk_free("not-yet", &there, &err), 0);
    assert_int_equal(ks_disk_free("/not-yet/there", &there, &err), 0);
    assert_int_equal(ks_disk_free("/dev/null/x", &there, &err), KS_E_IO);
    assert_string_equal(err.msg, "cannot find the free space of '/dev/null/x': Not a directory");
}

static void paths_are_joined_with_one_slash(void **state)
{
    (void)state;
    static const char *const rows[][3] = {
        { "a/b", "c", "a/b/c" }, { "a/", "c", "a/c" }, { "/", "c", "/c" }, { "", "c", "c" }, { "a", "", "a/" },
    };
    for (size_t i = 0; i < KS_COUNT(rows); i++) {
        char *p = ks_path_join(rows[i][0], rows[i][1]);
        assert_string_equal(p, rows[i][2]);
        free(p);
    }
}

static void home_comes_from_the_environment(void **state)
{
    (void)state;
    ks_err err;
    assert_int_equal(setenv("KRASIS_HOME", "/k", 1), 0);
    char *p = ks_home(&err);
    assert_string_equal(p, "/k");
    free(p);
    assert_int_equal(setenv("KRASIS_HOME", "", 1), 0);
    assert_int_equal(setenv("HOME", "/h", 1), 0);
    p = ks_home(&err);
    assert_string_equal(p, "/h/.krasis");
    free(p);
    assert_int_equal(unsetenv("HOME"), 0); /* the password file knows */
    p = ks_home(&err);
    if (p) assert_non_null(strstr(p, "/.krasis"));
    free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read),
        cmocka_unit_test(a_symbolic_link_stays_one),
        cmocka_unit_test(reading_fails_with_path_and_reason),
        cmocka_unit_test(files_without_a_size_are_read_to_their_end),
        cmocka_unit_test(a_full_disk_is_said_and_devices_are_not_replaced),
        cmocka_unit_test(a_write_that_fails_half_way_leaves_the_old_file),
        cmocka_unit_test(writing_fails_with_path_and_reason),
        cmocka_unit_test(folders_are_made_with_their_parents),
        cmocka_unit_test(free_space_is_known_for_folders_to_come),
        cmocka_unit_test(paths_are_joined_with_one_slash),
        cmocka_unit_test(home_comes_from_the_environment),
    };
    return cmocka_run_group_tests_name("file", tests, make_dir, remove_dir);
}
