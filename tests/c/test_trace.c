/* test_trace.c: GMPDEBUG, schedtrace, how long a goroutine has waited, the text that dumps are written with. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "native.h"
#include "trace.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

/* ---- text ---- */

TEST(trace_text)
{
    int fd[2];
    char got[4096];
    CHECK_EQ(pipe(fd), 0);
    Out o = {.fd = fd[1]};
    out_int(&o, 0);
    out_char(&o, ' ');
    out_int(&o, -17);
    out_char(&o, ' ');
    out_int(&o, INT64_MIN);
    out_char(&o, ' ');
    out_int(&o, INT64_MAX);
    out_char(&o, ' ');
    out_hex(&o, 0xbeef, 6);
    out_char(&o, ' ');
    for (int i = 0; i < 2000; i++) /* more than the buffer holds */
        out_str(&o, "x");
    out_flush(&o);
    out_flush(&o);
    close(fd[1]);
    size_t n = 0;
    ssize_t r;
    while ((r = read(fd[0], got + n, sizeof got - 1 - n)) > 0)
        n += (size_t)r;
    got[n] = '\0';
    const char *want = "0 -17 -9223372036854775808 9223372036854775807 00beef ";
    CHECK_EQ(n, strlen(want) + 2000);
    CHECK(memcmp(got, want, strlen(want)) == 0);
    CHECK(strspn(got + strlen(want), "x") == 2000);
}

TEST(trace_text_to_nowhere)
{
    Out o = {.fd = -1};
    for (int i = 0; i < 5000; i++)
        out_char(&o, 'x');
    out_flush(&o);
    CHECK_EQ(o.n, 0);
}

/* ---- GMPDEBUG ---- */

static void
with_vars(void *value)
{
    setenv("GMPDEBUG", value, 1);
    debug_init();
    debug_init();
    fprintf(stderr, "[%lld %d %d]\n", (long long)debugvars.schedtrace, debugvars.scheddetail, debugvars.sigquit);
}

TEST(trace_gmpdebug)
{
    CHECK_PRINTS(with_vars, "", "[0 0 1]");
    CHECK_PRINTS(with_vars, "schedtrace=250", "[250000000 0 1]");
    CHECK_PRINTS(with_vars, "scheddetail=1,schedtrace=1", "[1000000 1 1]");
    CHECK_PRINTS(with_vars, ",sigquit=0,,", "[0 0 0]");
    CHECK_PRINTS(with_vars, "schedtrace=86400000", "[86400000000000 0 1]");
}

TEST(trace_gmpdebug_that_is_wrong)
{
    static const char *const wrong[] = {"schedtrace",         "schedtrace=",         "schedtrace=-1", "schedtrace=1s",
                                        "schedtrace=86400001", "schedtrace=999999999", "scheddetail=2", "scheddetail=yes",
                                        "sched=1",            "=1",                  " sigquit=0",    "x"};
    char text[400], want[200];
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        test_child(with_vars, (void *)wrong[i], text, sizeof text);
        snprintf(want, sizeof want, "gmp: GMPDEBUG: \"%s\" is ignored: it ", wrong[i]);
        CHECK(strstr(text, want) != NULL);
        CHECK(strstr(text, "[0 0 1]") != NULL);
    }
    /* One warning, and what is right counts. */
    test_child(with_vars, "a=1,b=2,schedtrace=5,c=3", text, sizeof text);
    CHECK(strstr(text, "\"a=1\"") != NULL && strstr(text, "\"b=2\"") == NULL && strstr(text, "[5000000 0 1]") != NULL);
}

/* ---- schedtrace ---- */

static void
park(void *arg)
{
    Mutex *mu = arg;
    (void)mu;
    gopark(NULL, NULL, WAIT_CHAN_RECEIVE);
}

static void
traced(void *value)
{
    setenv("GMPDEBUG", value, 1);
    native_start(2);
    for (int i = 0; i < 3; i++)
        go(park, NULL);
    gosleep(120 * MS);
}

static int
lines_with(const char *text, const char *what)
{
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)) != NULL; p++)
        n++;
    return n;
}

TEST(trace_sched)
{
    static char text[1 << 16];
    test_child(traced, "schedtrace=20", text, sizeof text);
    LOG("%s", text);
    CHECK(lines_with(text, "SCHED ") >= 2 && lines_with(text, "SCHED ") <= 100);
    CHECK_EQ(lines_with(text, "SCHED "), lines_with(text, "ms: gomaxprocs=2 idleprocs="));
    CHECK_EQ(lines_with(text, "SCHED "), lines_with(text, "] set=native\n"));
    CHECK(lines_with(text, " [0 0] set=native") > 0);
    CHECK_EQ(lines_with(text, "  P0"), 0);
}

TEST(trace_sched_detail)
{
    static char text[1 << 16];
    test_child(traced, "schedtrace=50,scheddetail=1", text, sizeof text);
    LOG("%s", text);
    const char *last = text;
    for (const char *p = text; (p = strstr(p, "SCHED ")) != NULL; p++)
        last = p;
    CHECK_EQ(lines_with(last, "\n  P"), 2);
    CHECK(lines_with(last, "\n  M") >= 1);
    CHECK_EQ(lines_with(last, "status=4(chan receive) m=nil lockedm=nil\n"), 3);
    CHECK_EQ(lines_with(last, "status=4(sleep) m=nil lockedm=0\n"), 1);
}

TEST(trace_is_off_by_default)
{
    static char text[1 << 12];
    test_child(traced, "schedtrace=0,scheddetail=1", text, sizeof text);
    CHECK_EQ(lines_with(text, "SCHED "), 0);
}

/* ---- sysmon_call ---- */

static uint32_t called; /* atomic */

static void
call_me(void)
{
    CHECK(getm() == NULL);
    atomic_xadd(&called, 1u);
}

TEST(trace_sysmon_call)
{
    CHECK(!sysmon_call(call_me)); /* nobody there */
    native_start(1);
    gosleep(5 * MS);
    for (uint32_t i = 0; i < 50; i++) {
        if (i % 2 == 0)
            sys_usleep(300); /* sysmon sleeps, more or less deeply */
        CHECK(sysmon_call(call_me));
        while (atomic_load(&called) == i)
            sys_thread_yield();
        CHECK_EQ(atomic_load(&called), i + 1);
    }
}

/* ---- waiting times ---- */

static G *waiter;

static void
wait_here(void *arg)
{
    (void)arg;
    waiter = getg();
    gopark(NULL, NULL, WAIT_CHAN_RECEIVE);
    done();
}

TEST(trace_minutes_waited)
{
    native_start(1);
    go(wait_here, NULL);
    gosleep(5 * MS);
    CHECK_EQ(minutes_waited(waiter), 0);
    add_to_waits(59 * 60);
    CHECK(minutes_waited(waiter) == 58 || minutes_waited(waiter) == 59); /* stamps are whole seconds */
    CHECK_EQ(minutes_waited(getg()), 0);                                  /* it runs */
    goready(waiter);
    wait_done(1);
    quiet();
}

/* A goroutine that parks just after all were idle for long is not stamped with the time when they went idle. */
TEST(trace_stamps_are_fresh_after_idling)
{
    native_start(1);
    gosleep(5 * MS);
    sys_usleep(2500 * 1000); /* no P is in use: sysmon sleeps, and so does its clock */
    go(wait_here, NULL);
    gosleep(1);
    int64_t now = nanotime() / 1000000000;
    CHECK(waiter->waitsince + 1 >= now);
    goready(waiter);
    wait_done(1);
    quiet();
}
