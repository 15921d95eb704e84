/* test.h: how a test of the C core is written.
 *
 *   #include "test.h"
 *   TEST(chan_keeps_order) { ... CHECK(ok); CHECK_EQ(got, 3); }   a test; the runner finds it by itself
 *   TEST_LIMIT(many_goroutines, 60) { ... }                        the same with a limit of 60 s instead of 30
 *   CHECK_DIES(SIGABRT, fn, arg); CHECK_PRINTS(fn, arg, "text");   fn(arg) in a child: dies so; writes text to stderr
 *   SKIP("no such thing here");  LOG("...", ...);                  ends a test that cannot run; shown if the test fails
 *
 * Every test runs in a child process of its own, so it may leave threads, memory and locks behind, and starts from a
 * process in which nothing of the core has run.  Its standard error is shown only if it fails (or GMP_TEST_VERBOSE=1).
 */
#ifndef GMP_TEST_H
#define GMP_TEST_H

#include <signal.h>
#include <stdio.h>
#include <sys/types.h>

#include "sys.h"

typedef struct Test {
    const char *name, *file;
    void (*fn)(void);
    int limit; /* seconds */
    struct Test *next;
} Test;
void test_register(Test *t);

#define TEST_LIMIT(name_, limit_)                                                                                      \
    static void test_##name_(void);                                                                                    \
    __attribute__((constructor)) static void test_register_##name_(void)                                               \
    {                                                                                                                  \
        static Test t = {#name_, __FILE__, test_##name_, limit_, NULL};                                                \
        test_register(&t);                                                                                             \
    }                                                                                                                  \
    static void test_##name_(void)
#define TEST(name_) TEST_LIMIT(name_, 30)

GMP_NORETURN void test_fail(const char *file, int line, const char *fmt, ...) GMP_PRINTF(3, 4);
GMP_NORETURN void test_skip(const char *why);

#define CHECK(cond)                                                                                                    \
    do {                                                                                                               \
        if (!(cond))                                                                                                   \
            test_fail(__FILE__, __LINE__, "%s", #cond);                                                                \
    } while (0)
#define CHECK_EQ(a, b)                                                                                                 \
    do {                                                                                                               \
        long long a_ = (long long)(a), b_ = (long long)(b);                                                            \
        if (a_ != b_)                                                                                                  \
            test_fail(__FILE__, __LINE__, "%s == %s: %lld != %lld", #a, #b, a_, b_);                                   \
    } while (0)
#define LOG(...) fprintf(stderr, __VA_ARGS__)
#define SKIP(why) test_skip(why)

/* Runs fn(arg) in a child and returns its wait status; its stderr goes to err (may be NULL), cut to size. */
int test_child(void (*fn)(void *), void *arg, char *err, size_t size);
void test_check_dies(const char *file, int line, int sig, void (*fn)(void *), void *arg);
void test_check_prints(const char *file, int line, void (*fn)(void *), void *arg, const char *text);
#define CHECK_DIES(sig, fn, arg) test_check_dies(__FILE__, __LINE__, sig, fn, arg)
#define CHECK_PRINTS(fn, arg, text) test_check_prints(__FILE__, __LINE__, fn, arg, text)

/* True under a sanitizer or an emulator: divide big numbers by something. */
bool test_slow(void);
/* Resident bytes of this process, or 0 where the system does not tell. */
size_t test_rss(void);
/* Lets the address space grow by so many bytes more (0: without limit), or skips the test where that cannot be arranged. */
void test_limit_memory(size_t more);
/* Starts a joinable thread that runs fn(arg); a test must not end while one of them is needed. */
typedef struct TestThread TestThread;
TestThread *test_thread(void (*fn)(void *), void *arg);
void test_join(TestThread *t);

#endif
