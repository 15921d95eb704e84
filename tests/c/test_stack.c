/* test_stack.c: slots: distinct, reused, counted, found, many, refused, guarded, trimmed; from many threads. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "test.h"

#include <sys/resource.h>
#include <sys/wait.h>

#include "stack.h"

#define MIB ((size_t)1 << 20)

static StackStats st;

TEST(stack_classes_have_their_sizes)
{
    if (sys_page_size() == 4096) {
        CHECK(stack_class_size(STACK_2K) == 2048 || test_slow());
        CHECK_EQ(stack_class_size(STACK_64K), 64 << 10);
        CHECK_EQ(stack_class_size(STACK_256K), 256 << 10);
        CHECK_EQ(stack_class_size(STACK_512K), 512 << 10);
        CHECK_EQ(stack_guard_size(STACK_256K), 4096);
    }
    CHECK_EQ(stack_guard_size(STACK_2K), 32);
}

TEST(stack_slots_are_distinct_zero_and_aligned)
{
    enum { N = 300 };
    char *slot[N];

    for (int c = 0; c < STACK_CLASSES; c++) {
        size_t size = stack_class_size(c), guard = stack_guard_size(c);
        CHECK_EQ(stack_count(c), 0);
        for (int i = 0; i < N; i++) {
            slot[i] = stack_alloc(c);
            CHECK(slot[i] != NULL);
            CHECK_EQ((uintptr_t)slot[i] % size, 0);
            CHECK_EQ(slot[i][guard], 0);
            CHECK_EQ(slot[i][size - 1], 0);
            memset(slot[i] + guard, c * 16 + i % 16, 64);
            memset(slot[i] + size - 64, i, 64);
        }
        for (int i = 0; i < N; i++) {
            CHECK_EQ((uint8_t)slot[i][guard], c * 16 + i % 16);
            CHECK_EQ((uint8_t)slot[i][size - 1], i % 256);
            for (int j = 0; j < i; j++)
                CHECK(slot[i] + size <= slot[j] || slot[j] + size <= slot[i]);
        }
        stack_stats(c, &st);
        CHECK_EQ(st.carved, N);
        CHECK_EQ(st.in_use, N);
        CHECK_EQ(st.free, 0);
        CHECK_EQ(st.guarded + st.unguarded, c == STACK_2K ? 0 : N);
        CHECK(st.slabs == 1 || st.reserved_bytes > 64 * MIB);
    }
}

TEST(stack_reuse_is_last_in_first_out)
{
    void *a = stack_alloc(STACK_64K), *b = stack_alloc(STACK_64K), *some[8];

    stack_free(STACK_64K, a);
    stack_free(STACK_64K, b);
    stack_stats(STACK_64K, &st);
    CHECK_EQ(st.free, 2);
    CHECK(stack_alloc(STACK_64K) == b);
    CHECK(stack_alloc(STACK_64K) == a);
    CHECK_EQ(stack_count(STACK_64K), 2);
    stack_free(STACK_64K, a);
    CHECK_EQ(stack_alloc_n(STACK_64K, some, 8), 8);
    CHECK(some[0] == a);
    CHECK_EQ(stack_count(STACK_64K), 9);
    stack_free_n(STACK_64K, some, 8);
    stack_stats(STACK_64K, &st);
    CHECK_EQ(st.in_use, 1);
    CHECK_EQ(st.free, 8);
}

static void
free_too_much(void *arg)
{
    void *a = stack_alloc(STACK_64K);

    (void)arg;
    stack_free(STACK_64K, a);
    stack_free(STACK_64K, a);
}

TEST(stack_double_free_throws)
{
    CHECK_DIES(SIGABRT, free_too_much, NULL);
}

static void
overrun_2k(void *arg)
{
    char *lo = stack_alloc(STACK_2K);

    (void)arg;
    lo[0]++;
    stack_free(STACK_2K, lo);
}

TEST(stack_2k_packs_two_a_page_and_has_a_canary)
{
    char *a = stack_alloc(STACK_2K), *b = stack_alloc(STACK_2K);

    CHECK_EQ(b - a, stack_class_size(STACK_2K));
    CHECK(stack_canary_ok(a) && stack_canary_ok(b));
    memset(a + stack_guard_size(STACK_2K), 0xff, stack_class_size(STACK_2K) - stack_guard_size(STACK_2K));
    CHECK(stack_canary_ok(a) && stack_canary_ok(b));
    b[-1] = 0;
    CHECK(stack_canary_ok(b));
    b[0] = 0;
    CHECK(!stack_canary_ok(b));
    CHECK_PRINTS(overrun_2k, NULL, "stack overflow");
    CHECK_DIES(SIGABRT, overrun_2k, NULL);
}

TEST(stack_find_and_at)
{
    StackClass cls;
    void *lo;
    bool guard;
    int local = 0;

    CHECK(!stack_find(&local, &cls, &lo, &guard));
    CHECK(stack_at(STACK_64K, 0) == NULL);
    for (int c = 0; c < STACK_CLASSES; c++) {
        size_t size = stack_class_size(c), n = 5000; /* of the larger classes: more than one slab */
        for (size_t i = 0; i < n; i++)
            CHECK(stack_alloc(c) != NULL);
        CHECK_EQ(stack_count(c), n);
        for (size_t i = 0; i < n; i++) {
            char *at = stack_at(c, i);
            size_t off = cheaprand() % size;
            CHECK(stack_find(at + off, &cls, &lo, &guard));
            CHECK(lo == at);
            CHECK_EQ(cls, c);
            CHECK_EQ(guard, c != STACK_2K && off < sys_page_size());
            CHECK(stack_find(at, NULL, NULL, NULL) && stack_find(at + size - 1, &cls, &lo, NULL) && lo == at);
        }
    }
    CHECK(!stack_find(&local, &cls, &lo, &guard));
    CHECK(!stack_find(NULL, &cls, &lo, &guard));
    CHECK(!stack_find((void *)-1, &cls, &lo, &guard));
    stack_stats(STACK_512K, &st);
    CHECK(st.slabs > 1);
}

static void
touch(void *p)
{
    *(volatile char *)p = 1;
}

TEST(stack_guards_fault)
{
    if (sys_guard_kind() == GUARD_NONE)
        SKIP("no guards here");
    for (int c = STACK_64K; c < STACK_CLASSES; c++) {
        char *a = stack_alloc(c), *b = stack_alloc(c);
        CHECK_DIES(SIGSEGV, touch, a);
        CHECK_DIES(SIGSEGV, touch, b + sys_page_size() - 1);
        touch(a + sys_page_size());
        touch(a + stack_class_size(c) - 1);
        stack_trim(c, b, 4096);
        stack_free(c, b);
        CHECK(stack_alloc(c) == b);
        CHECK_DIES(SIGSEGV, touch, b); /* still there */
        stack_stats(c, &st);
        CHECK_EQ(st.guarded, 2);
    }
}

TEST(stack_trim_keeps_the_top)
{
    size_t size = stack_class_size(STACK_256K), page = sys_page_size();
    char *lo = stack_alloc(STACK_256K);

    memset(lo + page, 7, size - page);
    stack_trim(STACK_256K, lo, size);
    stack_trim(STACK_256K, lo, size - 2 * page + 1);
    CHECK_EQ(lo[page], 7); /* rounded up */
    stack_trim(STACK_256K, lo, size - 2 * page);
    CHECK_EQ(lo[page], 0);
    CHECK_EQ(lo[2 * page], 7);
    stack_trim(STACK_256K, lo, 2 * page + 1);
    CHECK_EQ(lo[page], 0);
    CHECK_EQ(lo[size - 3 * page - 1], 0);
    CHECK_EQ(lo[size - 3 * page], 7);
    CHECK_EQ(lo[size - 1], 7);
    stack_trim(STACK_256K, lo, 0);
    CHECK_EQ(lo[size - 1], 0);
    lo = stack_alloc(STACK_2K);
    memset(lo, 7, stack_class_size(STACK_2K));
    stack_trim(STACK_2K, lo, 0);
    CHECK_EQ(lo[100], 7);
}

/* A hundred thousand (GMP_TEST_SLOTS: any number) with one page touched each. */
TEST_LIMIT(stack_very_many, 120)
{
    const char *env = getenv("GMP_TEST_SLOTS");
    size_t n = env != NULL ? strtoull(env, NULL, 10) : test_slow() ? 5000 : 100000;
    size_t size = stack_class_size(STACK_256K), before = test_rss();
    int64_t start = nanotime();

    for (size_t i = 0; i < n; i++) {
        char *lo = stack_alloc(STACK_256K);
        CHECK(lo != NULL);
        *(size_t *)(lo + size - sizeof(size_t)) = i;
    }
    LOG("%s: %.0f ns a slot", stack_guard_name(), (double)(nanotime() - start) / (double)n);
    LOG(", %zu bytes resident each", (test_rss() - before) / n);
    stack_stats(STACK_256K, &st);
    LOG(", %zu slabs, %zu MiB, %zu guarded\n", st.slabs, st.reserved_bytes / MIB, st.guarded);
    if (before != 0 && !test_slow())
        CHECK((test_rss() - before) / n < sys_page_size() + 1024);
    if (sys_guard_kind() == GUARD_MADVISE)
        CHECK_EQ(st.guarded, n);
    free(malloc(64 * MIB)); /* maps are left for others, whatever the guards took */
    void *p = malloc(64 * MIB);
    CHECK(p != NULL);
    touch(p);
    for (size_t i = 0; i < n; i++) {
        char *lo = stack_at(STACK_256K, i);
        CHECK_EQ(*(size_t *)(lo + size - sizeof(size_t)), i);
        stack_free(STACK_256K, lo);
    }
    stack_stats(STACK_256K, &st);
    CHECK_EQ(st.free, n);
    start = nanotime();
    for (size_t i = n; i-- > 0;)
        CHECK(stack_alloc(STACK_256K) == stack_at(STACK_256K, i));
    LOG("%.1f ns a cached slot\n", (double)(nanotime() - start) / (double)n);
    CHECK_EQ(stack_count(STACK_256K), n);
}

static void
many_with_mprotect(void *arg)
{
    size_t n = 60000; /* two maps each: more than vm.max_map_count allows by default */

    (void)arg;
    setenv("GMP_GUARD", "mprotect", 1);
    for (size_t i = 0; i < n; i++) {
        char *lo = stack_alloc(STACK_64K);
        CHECK(lo != NULL);
        lo[stack_class_size(STACK_64K) - 1] = 1;
    }
    stack_stats(STACK_64K, &st);
    LOG("%zu guarded, %zu not\n", st.guarded, st.unguarded);
    CHECK_EQ(st.guarded + st.unguarded, n);
    CHECK(st.guarded > 1000);
    for (int i = 0; i < 20; i++)
        CHECK(sys_reserve(MIB) != NULL && malloc(MIB) != NULL);
    CHECK_EQ(sys_thread_start(touch, malloc(1), "gmp-still-alive", false), 0);
}

TEST(stack_mprotect_guards_leave_maps_for_others)
{
    char err[1000];

    if (test_slow())
        SKIP("slow");
    if (test_child(many_with_mprotect, NULL, err, sizeof(err)) != 0)
        test_fail(__FILE__, __LINE__, "%s", err);
    LOG("%s", err);
}

TEST(stack_refused_then_works_again)
{
    struct rlimit old, now;
    StackStats full;
    size_t n = 0, size = stack_class_size(STACK_512K), vsize = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    if (test_slow())
        SKIP("RLIMIT_AS and shadow memory or an emulator");
    if (f == NULL || fscanf(f, "%zu", &vsize) != 1)
        SKIP("no /proc/self/statm");
    fclose(f);
    CHECK(stack_alloc(STACK_64K) != NULL);
    getrlimit(RLIMIT_AS, &old);
    now = old;
    now.rlim_cur = vsize * sys_page_size() + 64 * MIB + 40 * MIB; /* the slab just made; less than a whole one more */
    CHECK_EQ(setrlimit(RLIMIT_AS, &now), 0);
    while (stack_alloc(STACK_512K) != NULL)
        n++;
    stack_stats(STACK_512K, &full);
    LOG("%zu slots in %zu slabs\n", n, full.slabs);
    CHECK(n >= 38 * MIB / size); /* all but the last crumbs */
    CHECK_EQ(full.carved, n);
    CHECK_EQ(full.in_use, n);
    for (int i = 0; i < 1000; i++) /* asking again costs nothing and changes nothing */
        CHECK(stack_alloc(STACK_512K) == NULL);
    stack_stats(STACK_512K, &st);
    CHECK(memcmp(&st, &full, sizeof(st)) == 0);
    stack_free(STACK_512K, stack_at(STACK_512K, 3));
    CHECK(stack_alloc(STACK_512K) == stack_at(STACK_512K, 3));
    void *some[4];
    stack_free(STACK_512K, stack_at(STACK_512K, 5));
    CHECK_EQ(stack_alloc_n(STACK_512K, some, 4), 1);
    CHECK_EQ(setrlimit(RLIMIT_AS, &old), 0);
    for (size_t i = 0; i < 1000; i++) {
        char *lo = stack_alloc(STACK_512K);
        CHECK(lo != NULL);
        lo[size - 1] = 1;
        CHECK(lo == stack_at(STACK_512K, n + i));
    }
}

/* ---- many threads ---- */

static long rounds;
static uint32_t stop;

static void
churn(void *arg)
{
    char *mine[64] = {NULL};
    StackClass cls = STACK_64K;
    size_t size = stack_class_size(cls);

    for (long i = 0; i < rounds; i++) {
        uint32_t k = cheaprand() % 64;
        if (mine[k] == NULL) {
            mine[k] = stack_alloc(cls);
            CHECK(mine[k] != NULL);
            *(void **)(mine[k] + size - 64) = arg; /* plain store: two owners would be a race, and a failure below */
        }
        else {
            CHECK(*(void **)(mine[k] + size - 64) == arg);
            stack_free(cls, mine[k]);
            mine[k] = NULL;
        }
    }
    for (int k = 0; k < 64; k++) {
        if (mine[k] != NULL)
            stack_free(cls, mine[k]);
    }
}

static void
watch(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        size_t n = stack_count(STACK_64K);
        for (size_t i = 0; i < n; i++) {
            StackClass cls;
            void *at = stack_at(STACK_64K, i), *lo;
            CHECK(at != NULL);
            CHECK(stack_find(at, &cls, &lo, NULL) && cls == STACK_64K && lo == at);
        }
    }
}

TEST(stack_from_many_threads)
{
    TestThread *t[4], *w;

    rounds = test_slow() ? 10000 : 100000;
    w = test_thread(watch, NULL);
    for (intptr_t i = 0; i < 4; i++)
        t[i] = test_thread(churn, (void *)(i + 1));
    for (int i = 0; i < 4; i++)
        test_join(t[i]);
    atomic_store(&stop, 1u);
    test_join(w);
    stack_stats(STACK_64K, &st);
    CHECK_EQ(st.in_use, 0);
    CHECK_EQ(st.free, st.carved);
    CHECK(st.carved <= 4 * 64);
}

static void
forked(void *arg)
{
    (void)arg;
    lock_after_fork();
    stack_after_fork();
    for (int i = 0; i < 100; i++)
        CHECK(stack_alloc(STACK_64K) != NULL);
}

TEST(stack_round_a_fork)
{
    TestThread *t;

#ifdef GMP_TSAN
    SKIP("ThreadSanitizer and fork with threads");
#endif
    rounds = test_slow() ? 20000 : 200000;
    t = test_thread(churn, &stop);
    for (int i = 0; i < 20; i++) {
        int status;
        stack_before_fork();
        status = test_child(forked, NULL, NULL, 0);
        stack_after_fork();
        CHECK_EQ(status, 0);
    }
    test_join(t);
}
