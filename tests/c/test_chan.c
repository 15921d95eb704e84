/* test_chan.c: channels and select, by Go's rules; with 1, 2 and 4 Ps. */
#include "native.h"

static Hchan c, d, back;
static long sent, received, counter; /* atomic */

static Hchan *
make(Hchan *ch, size_t size)
{
    CHECK_EQ(chan_init(ch, sizeof(uint64_t), size), 0);
    return ch;
}

static int
send(Hchan *ch, uint64_t x)
{
    return chansend(ch, &x, -1);
}

static uint64_t
recv(Hchan *ch)
{
    uint64_t x = 99;

    CHECK_EQ(chanrecv(ch, &x, -1), 0);
    return x;
}

static void
nobody_waits(Hchan *ch)
{
    CHECK(ch->recvq.first == NULL && ch->recvq.last == NULL && ch->sendq.first == NULL && ch->sendq.last == NULL);
    CHECK_EQ(ch->lock.key, 0);
}

/* Until n goroutines wait in q. */
static void
wait_waiters(Hchan *ch, WaitQ *q, int n)
{
    for (;;) {
        int k = 0;
        spin_lock(&ch->lock);
        for (Sudog *sg = q->first; sg != NULL; sg = sg->next)
            k++;
        spin_unlock(&ch->lock);
        if (k == n)
            return;
        gosleep(50 * US);
    }
}

/* ---- one goroutine, nothing blocks ---- */

TEST(chan_sizes)
{
    Hchan x;

    CHECK_EQ(chan_init(&x, 8, SIZE_MAX / 8), GMP_EINVAL);
    CHECK_EQ(chan_init(&x, (1 << 16) + 1, 0), GMP_EINVAL);
    CHECK_EQ(chan_init(&x, 8, (size_t)1 << 48), GMP_ENOMEM);
    CHECK_EQ(chan_init(&x, 0, 1000000), 0); /* elements without bytes need no memory */
    chan_term(&x);
}

TEST(chan_buffer_is_first_in_first_out)
{
    uint64_t x = 1;

    native_start(1);
    for (size_t size = 1; size < 6; size++) {
        make(&c, size);
        for (uint64_t round = 0; round < 10; round++) { /* wraps round in all ways */
            for (uint64_t i = 0; i < size; i++) {
                CHECK_EQ(chanlen(&c), i);
                x = round * 10 + i;
                CHECK_EQ(chansend(&c, &x, 0), 0);
            }
            CHECK_EQ(chansend(&c, &x, 0), GMP_ETIMEDOUT);
            for (uint64_t i = 0; i < size - round % 2; i++)
                CHECK_EQ(recv(&c), round * 10 + i);
            if (round % 2 == 1)
                CHECK_EQ(chanrecv(&c, NULL, 0), 0); /* received and dropped */
            CHECK_EQ(chanrecv(&c, &x, 0), GMP_ETIMEDOUT);
        }
        chan_term(&c);
    }
}

TEST(chan_of_nothing_and_of_much)
{
    static char big[1000], got[1000];
    Hchan none, much;

    native_start(1);
    CHECK_EQ(chan_init(&none, 0, 3), 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(chansend(&none, NULL, 0), 0);
    CHECK_EQ(chansend(&none, NULL, 0), GMP_ETIMEDOUT);
    CHECK_EQ(chanlen(&none), 3);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(chanrecv(&none, NULL, 0), 0);
    CHECK_EQ(chanrecv(&none, NULL, 0), GMP_ETIMEDOUT);
    CHECK_EQ(chanclose(&none), 0);
    CHECK_EQ(chanrecv(&none, NULL, -1), GMP_ECLOSED);
    chan_term(&none);
    CHECK_EQ(chan_init(&much, sizeof(big), 2), 0);
    for (int i = 0; i < 1000; i++)
        big[i] = (char)i;
    CHECK_EQ(chansend(&much, big, 0), 0);
    CHECK_EQ(chanrecv(&much, got, 0), 0);
    CHECK(memcmp(big, got, sizeof(big)) == 0);
    chan_term(&much);
}

TEST(chan_close)
{
    uint64_t x = 7;
    bool ok = true;
    Scase cases[1];

    native_start(1);
    make(&c, 3);
    send(&c, 1);
    send(&c, 2);
    CHECK_EQ(chanclose(&c), 0);
    CHECK_EQ(chanclose(&c), GMP_ECLOSED);
    CHECK_EQ(chansend(&c, &x, 0), GMP_ECLOSED);
    CHECK_EQ(chansend(&c, &x, -1), GMP_ECLOSED);
    cases[0] = (Scase){.c = &c, .elem = &x, .send = true};
    CHECK_EQ(selectgo(cases, 1, -1, &ok), 0);
    CHECK(!ok);
    CHECK_EQ(recv(&c), 1); /* what was sent before is received */
    cases[0].send = false;
    CHECK_EQ(selectgo(cases, 1, -1, &ok), 0);
    CHECK(ok && x == 2);
    CHECK_EQ(chanrecv(&c, &x, -1), GMP_ECLOSED);
    CHECK_EQ(x, 0);
    x = 7;
    CHECK_EQ(selectgo(cases, 1, 0, &ok), 0);
    CHECK(!ok && x == 0);
    chan_term(&c);
}

TEST(chan_nil_blocks)
{
    uint64_t x = 7;
    bool ok;
    Scase cases[2] = {{.c = NULL, .elem = &x}, {.c = NULL, .elem = &x, .send = true}};
    int64_t start = nanotime();

    native_start(1);
    CHECK_EQ(chansend(NULL, &x, 0), GMP_ETIMEDOUT);
    CHECK_EQ(chanrecv(NULL, &x, 0), GMP_ETIMEDOUT);
    CHECK_EQ(chansend(NULL, &x, 5 * MS), GMP_ETIMEDOUT);
    CHECK_EQ(chanrecv(NULL, &x, 5 * MS), GMP_ETIMEDOUT);
    CHECK_EQ(selectgo(cases, 2, 0, &ok), GMP_ETIMEDOUT);
    CHECK_EQ(selectgo(cases, 2, 5 * MS, &ok), GMP_ETIMEDOUT);
    CHECK_EQ(selectgo(NULL, 0, 5 * MS, &ok), GMP_ETIMEDOUT);
    CHECK(nanotime() - start >= 20 * MS);
    CHECK_EQ(x, 7);
    CHECK_EQ(selectgo(cases, -1, 0, &ok), GMP_EINVAL);
    quiet();
}

static void
wait_for_ever(void *arg)
{
    bool ok = false;

    switch ((intptr_t)arg) {
    case 0:
        chansend(NULL, &ok, -1);
        break;
    case 1:
        chanrecv(NULL, &ok, -1);
        break;
    case 2:
        selectgo(NULL, 0, -1, &ok);
        break;
    }
    CHECK(!"woken");
}

TEST(chan_nil_blocks_for_ever)
{
    native_start(2);
    for (intptr_t i = 0; i < 3; i++)
        go(wait_for_ever, (void *)i);
    gosleep(20 * MS);
    CHECK_EQ(num_goroutine(NATIVE), 3);
}

/* ---- senders and receivers ---- */

static void
send_squares(void *arg)
{
    for (uint64_t i = 0; i < 1000; i++)
        CHECK_EQ(send(arg, i * i), 0);
    CHECK_EQ(chanclose(arg), 0);
    done();
}

static void
in_order(size_t size)
{
    uint64_t x, i = 0;

    make(&c, size);
    go(send_squares, &c);
    while (chanrecv(&c, &x, -1) == 0) {
        CHECK_EQ(x, i * i);
        i++;
    }
    CHECK_EQ(i, 1000);
    wait_done(1);
    nobody_waits(&c);
    chan_term(&c);
}

TEST_P(chan_keeps_order)
{
    in_order(0);
    in_order(1);
    in_order(7);
    in_order(2000);
    quiet();
}

static void
echo(void *arg)
{
    uint64_t x;

    (void)arg;
    while (chanrecv(&c, &x, -1) == 0)
        CHECK_EQ(send(&back, x + 1), 0);
    done();
}

TEST_P(chan_round_trips)
{
    long n = test_slow() ? 2000 : 50000;

    make(&c, 0);
    make(&back, 0);
    go(echo, NULL);
    for (long i = 0; i < n; i++) {
        send(&c, (uint64_t)i);
        CHECK_EQ(recv(&back), i + 1);
    }
    chanclose(&c);
    wait_done(1);
    quiet();
}

/* An unbuffered send returns only when the value was received. */
static void
late_receiver(void *arg)
{
    gosleep(5 * MS);
    atomic_store(&counter, 1);
    CHECK_EQ(recv(arg), 5);
    done();
}

TEST_P(chan_unbuffered_is_a_rendezvous)
{
    make(&c, 0);
    go(late_receiver, &c);
    send(&c, 5);
    CHECK_EQ(atomic_load(&counter), 1);
    wait_done(1);
    quiet();
}

static uint64_t got[64];
static int ngot;

static void
receive_one(void *arg)
{
    uint64_t x = 0;

    CHECK_EQ(chanrecv(&c, &x, -1), 0);
    CHECK_EQ(x, (intptr_t)arg);
    done();
}

static void
send_one(void *arg)
{
    CHECK_EQ(send(&c, (uint64_t)(intptr_t)arg), 0);
    done();
}

TEST_P(chan_waiters_are_served_in_order)
{
    make(&c, 0);
    for (intptr_t i = 0; i < 10; i++) {
        go(receive_one, (void *)i);
        wait_waiters(&c, &c.recvq, (int)i + 1);
    }
    for (uint64_t i = 0; i < 10; i++)
        send(&c, i);
    wait_done(10);
    chan_term(&c);
    make(&c, 2);
    send(&c, 0);
    send(&c, 1);
    for (intptr_t i = 2; i < 12; i++) {
        go(send_one, (void *)i);
        wait_waiters(&c, &c.sendq, (int)i - 1);
    }
    for (uint64_t i = 0; i < 12; i++) {
        CHECK_EQ(recv(&c), i);
        CHECK_EQ(chanlen(&c), i < 10 ? 2 : 11 - i); /* a waiting sender fills the slot at once */
    }
    wait_done(10);
    nobody_waits(&c);
    quiet();
}

/* ---- close with waiters ---- */

static void
receiver_meets_close(void *arg)
{
    uint64_t x = 5;

    CHECK_EQ(chanrecv(&c, &x, (intptr_t)arg % 2 ? -1 : 20 * SEC), GMP_ECLOSED);
    CHECK_EQ(x, 0);
    done();
}

static void
sender_meets_close(void *arg)
{
    uint64_t x = 5;

    CHECK_EQ(chansend(&d, &x, (intptr_t)arg % 2 ? -1 : 20 * SEC), GMP_ECLOSED);
    done();
}

static void
select_meets_close(void *arg)
{
    uint64_t x = 5, y = 6;
    bool ok = true;
    Scase cases[2] = {{.c = &c, .elem = &x}, {.c = &d, .elem = &y, .send = true}};
    int i = selectgo(cases, 2, (intptr_t)arg % 2 ? -1 : 20 * SEC, &ok);

    CHECK(i == 0 || i == 1);
    CHECK(!ok);
    CHECK_EQ(x, i == 0 ? 0 : 5);
    done();
}

TEST_P(chan_close_wakes_all)
{
    make(&c, 0);
    make(&d, 0);
    for (intptr_t i = 0; i < 10; i++) {
        go(receiver_meets_close, (void *)i);
        go(sender_meets_close, (void *)i);
        go(select_meets_close, (void *)i);
    }
    wait_waiters(&c, &c.recvq, 20);
    wait_waiters(&d, &d.sendq, 20);
    CHECK_EQ(chanclose(&c), 0);
    CHECK_EQ(chanclose(&d), 0);
    wait_done(30);
    nobody_waits(&c);
    nobody_waits(&d);
    quiet();
}

/* ---- timeouts ---- */

static void
times_out(void *arg)
{
    Rng r = rng_new(test_seed(), (uint64_t)(intptr_t)arg);

    for (int i = 0; i < 50; i++) {
        int64_t ns = rng(&r, 2000000), start = nanotime();
        uint64_t x = 3, y = 4;
        bool ok;
        Scase cases[3] = {{.c = &c, .elem = &x}, {.c = &d, .elem = &y, .send = true}, {.c = &c, .elem = &y}};
        int code = rng(&r, 2)   ? selectgo(cases, 3, ns, &ok)
                   : rng(&r, 2) ? chanrecv(&c, &x, ns)
                                : chansend(&d, &x, ns);
        CHECK_EQ(code, GMP_ETIMEDOUT);
        CHECK(nanotime() - start >= ns);
        CHECK(x == 3 && y == 4);
    }
    done();
}

TEST_P(chan_timeouts)
{
    int n = test_slow() ? 20 : 100;

    make(&c, 0);
    make(&d, 2);
    send(&d, 1);
    send(&d, 1);
    for (intptr_t i = 0; i < n; i++)
        go(times_out, (void *)i);
    wait_done(n);
    nobody_waits(&c);
    nobody_waits(&d);
    quiet();
}

/* A send and the receiver's timeout race: either both have the value or neither. */
static void
hasty_receiver(void *arg)
{
    uint64_t x = 0;

    (void)arg;
    for (;;) {
        int code = chanrecv(&c, &x, cheaprand() % 30000);
        if (code == GMP_OK)
            atomic_xadd(&received, (long)x);
        else if (code == GMP_ECLOSED)
            break;
        else
            CHECK_EQ(code, GMP_ETIMEDOUT);
    }
    done();
}

static void
hasty_sender(void *arg)
{
    (void)arg;
    for (uint64_t i = 1; i <= (test_slow() ? 300 : 3000); i++) {
        int code = chansend(&c, &i, cheaprand() % 30000);
        if (code == GMP_OK)
            atomic_xadd(&sent, (long)i);
        else
            CHECK_EQ(code, GMP_ETIMEDOUT);
    }
    done();
}

static void
races(size_t size)
{
    make(&c, size);
    for (int i = 0; i < 4; i++) {
        go(hasty_sender, NULL);
        go(hasty_receiver, NULL);
    }
    wait_done(4);
    chanclose(&c);
    wait_done(4);
    CHECK_EQ(sent, received);
    CHECK(sent > 0);
    nobody_waits(&c);
    chan_term(&c);
}

TEST_P(chan_timeouts_race_wakers)
{
    races(0);
    races(1);
    quiet();
}

/* ---- many of both ---- */

static void
producer(void *arg)
{
    uint64_t n = (uint64_t)(uintptr_t)arg;

    for (uint64_t i = 1; i <= n; i++) {
        CHECK_EQ(send(&c, i), 0);
        atomic_xadd(&sent, (long)i);
    }
    done();
}

static void
consumer(void *arg)
{
    uint64_t x, last = 0;

    while (chanrecv(&c, &x, -1) == 0) {
        atomic_xadd(&received, (long)x);
        if (arg != NULL) {
            CHECK(x > last); /* one producer: still in order */
            last = x;
        }
    }
    CHECK_EQ(x, 0);
    done();
}

static void
many(size_t size, int producers, int consumers, long n)
{
    make(&c, size);
    sent = received = 0;
    for (int i = 0; i < consumers; i++)
        go(consumer, producers == 1 ? &c : NULL);
    for (int i = 0; i < producers; i++)
        go(producer, (void *)(intptr_t)n);
    wait_done(producers);
    chanclose(&c);
    wait_done(consumers);
    CHECK_EQ(received, sent);
    CHECK_EQ(received, producers * (n * (n + 1) / 2));
    chan_term(&c);
}

TEST_P(chan_many_producers_and_consumers)
{
    long n = test_slow() ? 200 : 5000;

    many(0, 1, 3, n);
    many(0, 5, 5, n);
    many(1, 5, 3, n);
    many(16, 10, 10, n);
    quiet();
}

/* ---- select ---- */

TEST(select_is_uniform)
{
    enum { N = 6, ROUNDS = 12000 };
    static Hchan ch[N];
    uint64_t x = 0;
    int hits[N] = {0};
    Scase cases[N];

    native_start(1);
    for (int i = 0; i < N; i++) {
        make(&ch[i], ROUNDS);
        cases[i] = (Scase){.c = i == 3 ? NULL : &ch[i], .elem = &x, .send = i % 2 == 0};
        for (int k = 0; k < ROUNDS && i % 2 == 1; k++)
            send(&ch[i], 1);
    }
    for (int i = 0; i < ROUNDS; i++) {
        bool ok = false;
        int k = selectgo(cases, N, i % 2 ? -1 : 0, &ok);
        CHECK(k >= 0 && k < N && ok);
        hits[k]++;
    }
    CHECK_EQ(hits[3], 0);
    for (int i = 0; i < N; i++)
        CHECK(i == 3 || (hits[i] > ROUNDS / 5 - 300 && hits[i] < ROUNDS / 5 + 300)); /* 2,400 +- 44 */
}

TEST(select_try)
{
    uint64_t x = 1, y = 2;
    bool ok;
    Scase cases[2] = {{.c = &c, .elem = &x}, {.c = &d, .elem = &y, .send = true}};

    native_start(1);
    make(&c, 1);
    make(&d, 0);
    CHECK_EQ(selectgo(cases, 2, 0, &ok), GMP_ETIMEDOUT);
    send(&c, 9);
    CHECK_EQ(selectgo(cases, 2, 0, &ok), 0);
    CHECK(ok && x == 9);
    CHECK_EQ(selectgo(cases, 2, 0, &ok), GMP_ETIMEDOUT);
    nobody_waits(&c);
    nobody_waits(&d);
}

static void
select_waits(void *arg)
{
    enum { N = 9 }; /* more than lie on the stack */
    static Hchan idle[N];
    uint64_t x = 0, y = 5;
    bool ok = false;
    Scase cases[N];
    int k = (int)(intptr_t)arg;

    for (int i = 0; i < N; i++) {
        if (idle[i].elemsize == 0)
            make(&idle[i], 0);
        cases[i] = (Scase){.c = i == k ? &c : &idle[i], .elem = &x};
    }
    cases[(k + 1) % N] = (Scase){.c = &idle[0], .elem = &y, .send = true};
    cases[(k + 2) % N].c = &c; /* the same channel twice */
    int got_case = selectgo(cases, N, -1, &ok);
    CHECK(got_case == k || got_case == (k + 2) % N);
    CHECK(ok && x == 70);
    for (int i = 0; i < N; i++)
        nobody_waits(&idle[i]);
    done();
}

TEST_P(select_waits_for_any)
{
    make(&c, 0);
    for (intptr_t i = 0; i < 9; i++) {
        go(select_waits, (void *)i);
        gosleep(100 * US);
        send(&c, 70);
        wait_done(1);
        nobody_waits(&c);
    }
    quiet();
}

static void
both_ways(void *arg)
{
    long n = (long)(intptr_t)arg;

    for (long i = 0; i < n; i++) {
        uint64_t x = 0, y = 1 + cheaprand() % 1000;
        bool ok = false;
        Scase cases[2] = {{.c = &c, .elem = &x}, {.c = &c, .elem = &y, .send = true}};
        int k = selectgo(cases, 2, -1, &ok);
        CHECK(ok);
        if (k == 0)
            atomic_xadd(&received, (long)x);
        else
            atomic_xadd(&sent, (long)y);
        atomic_xadd(&counter, 1);
    }
    done();
}

/* Everybody offers to send and to receive on one channel; nobody may talk to itself. */
TEST_P(select_both_directions_of_one_channel)
{
    uint64_t x;
    bool ok;
    Scase cases[2] = {{.c = &c, .elem = &x}, {.c = &c, .elem = &x, .send = true}};
    long n = test_slow() ? 200 : 4000;

    make(&c, 0);
    CHECK_EQ(selectgo(cases, 2, MS, &ok), GMP_ETIMEDOUT);
    nobody_waits(&c);
    go(both_ways, (void *)(intptr_t)n);
    go(both_ways, (void *)(intptr_t)n); /* each step of the one is a step of the other */
    wait_done(2);
    CHECK_EQ(sent, received);
    CHECK_EQ(counter, 2 * n);
    nobody_waits(&c);
    quiet();
}

static void
selector(void *arg)
{
    Rng r = rng_new(test_seed(), (uint64_t)(intptr_t)arg);
    uint64_t x, y;

    for (long i = 0; i < (test_slow() ? 200 : 4000); i++) {
        bool ok;
        Scase cases[4] = {{.c = &c, .elem = &x}, {.c = &d, .elem = &x}, {.c = &c, .elem = &y, .send = true},
                          {.c = &d, .elem = &y, .send = true}};
        y = 1 + rng(&r, 1000);
        int first = (int)rng(&r, 4), n = 1 + (int)rng(&r, 4u - (uint32_t)first);
        int k = selectgo(cases + first, n, rng(&r, 3) == 0 ? 0 : rng(&r, 50000), &ok);
        if (k < 0) {
            CHECK_EQ(k, GMP_ETIMEDOUT);
            continue;
        }
        CHECK(k < n && ok);
        atomic_xadd(k + first < 2 ? &received : &sent, (long)(k + first < 2 ? x : y));
    }
    done();
}

/* Locks in all orders, timeouts, both directions, two channels: what was sent is what was received. */
TEST_P(select_many)
{
    uint64_t x;

    make(&c, 0);
    make(&d, 3);
    for (intptr_t i = 0; i < 10; i++)
        go(selector, (void *)i);
    wait_done(10);
    while (chanrecv(&d, &x, 0) == 0)
        received += (long)x;
    CHECK_EQ(sent, received);
    nobody_waits(&c);
    nobody_waits(&d);
    quiet();
}

static void
select_until_closed(void *arg)
{
    (void)arg;
    for (;;) {
        uint64_t x, y = 1;
        bool ok;
        Scase cases[3] = {{.c = &c, .elem = &x}, {.c = &d, .elem = &y, .send = true}, {.c = &d, .elem = &x}};
        int k = selectgo(cases, 3, cheaprand() % 4 ? -1 : (int64_t)(cheaprand() % 20000), &ok);
        if (k == GMP_ETIMEDOUT)
            continue;
        CHECK(k >= 0);
        if (!ok)
            break;
        atomic_xadd(k == 1 ? &sent : &received, 1);
    }
    done();
}

TEST_P(select_meets_close_at_any_time)
{
    for (int round = 0; round < (test_slow() ? 20 : 200); round++) {
        make(&c, 0);
        make(&d, round % 3);
        for (int i = 0; i < 4; i++)
            go(select_until_closed, NULL);
        sys_usleep(cheaprand() % 200);
        chanclose(round % 2 ? &c : &d);
        wait_done(4);
        nobody_waits(&c);
        nobody_waits(&d);
        sent -= (long)d.qcount;
        CHECK_EQ(sent, received);
        chan_term(&c);
        chan_term(&d);
    }
    quiet();
}

/* ---- from threads ---- */

static void
thread_sends(void *arg)
{
    native_adopt();
    producer(arg);
    native_disown();
}

static void
thread_receives(void *arg)
{
    native_adopt();
    consumer(arg);
    native_disown();
}

TEST_P(chan_between_threads_and_goroutines)
{
    long n = test_slow() ? 100 : 2000;
    TestThread *t[4];

    make(&c, 1);
    for (int i = 0; i < 2; i++) {
        t[i] = test_thread(thread_receives, NULL);
        t[2 + i] = test_thread(thread_sends, (void *)(intptr_t)n);
        go(consumer, NULL);
        go(producer, (void *)(intptr_t)n);
    }
    wait_done(4);
    test_join(t[2]);
    test_join(t[3]);
    chanclose(&c);
    wait_done(4);
    test_join(t[0]);
    test_join(t[1]);
    CHECK_EQ(sent, received);
    CHECK_EQ(sent, 4 * (n * (n + 1) / 2));
    quiet();
}

/* A thread the core does not know can do what does not wait. */
static void
stranger(void *arg)
{
    uint64_t x;
    bool ok;

    (void)arg;
    for (uint64_t i = 1; i <= 2000; i++) {
        Scase cases[2] = {{.c = &c, .elem = &i, .send = true}, {.c = &d, .elem = &x}};
        for (;;) {
            int k = i % 2 ? chansend(&c, &i, 0) : selectgo(cases, 2, 0, &ok);
            if (k == 0)
                break;
            CHECK_EQ(k, GMP_ETIMEDOUT);
            sys_thread_yield();
        }
        atomic_xadd(&sent, (long)i);
    }
    chanclose(&c);
}

TEST_P(chan_from_foreign_threads)
{
    TestThread *t;

    make(&c, 0);
    make(&d, 0);
    for (int i = 0; i < 3; i++)
        go(consumer, NULL);
    t = test_thread(stranger, NULL);
    wait_done(3);
    test_join(t);
    CHECK_EQ(sent, received);
    quiet();
}

/* ---- a classic ---- */

static void
filter(void *arg)
{
    Hchan *in = arg, *out = NULL;
    uint64_t prime = recv(in), x;

    got[ngot++] = prime;
    if (ngot == 40)
        done();
    while (chanrecv(in, &x, -1) == 0) {
        if (x % prime == 0)
            continue;
        if (out == NULL) {
            out = calloc(1, sizeof(*out));
            make(out, 0);
            go(filter, out);
        }
        if (send(out, x) != 0)
            break;
    }
    if (out != NULL)
        chanclose(out);
    chanclose(&back);
}

static void
generate(void *arg)
{
    for (uint64_t i = 2; i < 174; i++)
        send(arg, i);
    chanclose(arg);
}

TEST_P(chan_prime_sieve)
{
    make(&c, 0);
    make(&back, 0);
    go(filter, &c);
    go(generate, &c);
    wait_done(1);
    CHECK_EQ(got[0], 2);
    CHECK_EQ(got[9], 29);
    CHECK_EQ(got[39], 173);
    quiet();
}
