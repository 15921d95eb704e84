/* model_runq.c: the local queues of Ps and the global queue: an owner, thieves, an onlooker.
 * Each goroutine is taken exactly once, whoever takes it; a queue that is never empty never looks empty. */
#include "mc.h"

#include "runtime.h"

#include "runq.c"

enum { GS = 12 };

Sched scheds[SETS];
static Sched *const sched = &scheds[SET_NATIVE];
static G gs[GS];
static uint8_t taken[GS];
static int nput; /* goroutines that were ever queued */

static void
take(G *gp)
{
    MC_CHECK(gp >= gs && gp < gs + GS);
    mc_note("takes %d", (int)(gp - gs));
    MC_CHECK(taken[gp - gs]++ == 0);
}

static void
put(P *pp, bool next)
{
    MC_CHECK(nput < GS);
    mc_note("puts %d", nput);
    runqput(pp, &gs[nput++], next);
}

/* What is left in the queues, and whether it makes up for what was not taken. */
static void
all_taken_once(void)
{
    for (uint32_t i = 0; i < sched->np; i++) {
        P *pp = sched->allp[i];
        MC_CHECK(pp->runqtail - pp->runqhead <= RUNQ_SIZE);
        for (G *gp; (gp = runqget(pp)) != NULL;)
            take(gp);
        MC_CHECK(runqempty(pp));
    }
    for (G *gp; (gp = globrunqget(sched, sched->allp[0], 1)) != NULL;)
        take(gp);
    for (int i = 0; i < nput; i++)
        MC_CHECK(taken[i] == 1);
    MC_CHECK(sched->lock.key == 0);
}

static P *
queues(uint32_t np)
{
    sched->np = np;
    for (uint32_t i = 0; i < np; i++) {
        P *pp = sched->allp[i] = mc_alloc(sizeof(P));
        pp->id = i;
        pp->set = sched;
        pp->runqhead = pp->runqtail = UINT32_MAX - 2; /* the indices wrap early on */
    }
    globrunqreserve(sched, 16);
    mc_at_end(all_taken_once);
    return sched->allp[0];
}

static void
get(P *pp)
{
    G *gp = runqget(pp);
    if (gp != NULL)
        take(gp);
}

static void
steal_once(void *arg)
{
    P *pp = arg;
    G *gp = runqsteal(pp, sched->allp[0], true);
    if (gp != NULL)
        take(gp);
}

/* Steals, runs what it got, steals again. */
static void
steal_and_get(void *arg)
{
    P *pp = arg;
    for (int i = 0; i < 2; i++) {
        G *gp = runqsteal(pp, sched->allp[0], i == 1);
        if (gp == NULL)
            continue;
        take(gp);
        for (int j = 0; j < 2; j++)
            get(pp);
    }
}

/* ---- put and get against two thieves ---- */

static void
put_and_get(void *arg)
{
    P *pp = arg;
    put(pp, false);
    put(pp, true);
    put(pp, true);
    get(pp);
    put(pp, false);
    get(pp);
    get(pp);
}

MODEL(runq_owner_and_thieves, "3/0", "1/0")
{
    P *pp = queues(3);
    put(pp, false);
    mc_thread("owner", put_and_get, pp);
    mc_thread("thief1", steal_and_get, sched->allp[1]);
    mc_thread("thief2", steal_and_get, sched->allp[2]);
}

MODEL(runq_memory_order, "2/2", "1/1")
{
    P *pp = queues(2);
    put(pp, false);
    mc_thread("owner", put_and_get, pp);
    mc_thread("thief", steal_and_get, sched->allp[1]);
}

/* ---- overflow: the slots are used again while thieves copy them ---- */

static void
overflow(void *arg)
{
    P *pp = arg;
    for (int i = 0; i < 3; i++)
        put(pp, i == 1);
    get(pp);
    put(pp, false);
}

static void
full(uint32_t np)
{
    P *pp = queues(np);
    for (int i = 0; i < RUNQ_SIZE; i++)
        put(pp, false);
    mc_thread("owner", overflow, pp);
}

MODEL(runq_overflow, "3/0", "2/0")
{
    full(3);
    mc_thread("thief1", steal_and_get, sched->allp[1]);
    mc_thread("thief2", steal_once, sched->allp[2]);
}

MODEL(runq_overflow_memory_order, "2/2", "1/1")
{
    full(2);
    mc_thread("thief", steal_and_get, sched->allp[1]);
}

/* The owner goes once round the ring while a thief holds an old head. */
static void
round_the_ring(void *arg)
{
    P *pp = arg;
    for (int i = 0; i < RUNQ_SIZE; i++) {
        get(pp);
        put(pp, false);
    }
}

MODEL(runq_once_round, "3/1", "2/1")
{
    P *pp = queues(2);
    put(pp, false);
    put(pp, false);
    mc_thread("owner", round_the_ring, pp);
    mc_thread("thief", steal_once, sched->allp[1]);
}

/* Thieves of each other: the queue that receives a batch is stolen from at the same time.  As in stealwork, one steals
 * only when its own queue is empty. */
static void
rob(void *arg)
{
    P *pp = arg, *other = sched->allp[3 - pp->id];
    for (uint32_t i = 0; i < 2; i++) {
        G *gp = runqsteal(pp, i + 1 == pp->id ? sched->allp[0] : other, i == 1); /* thief 2 begins with thief 1 */
        while (gp != NULL) {
            take(gp);
            gp = runqget(pp);
        }
    }
}

MODEL(runq_thieves_of_thieves, "4/1", "2/0")
{
    P *pp = queues(3);
    for (int i = 0; i < RUNQ_SIZE; i++)
        put(pp, false);
    mc_thread("thief1", rob, sched->allp[1]);
    mc_thread("thief2", rob, sched->allp[2]);
}

/* ---- runnext: kicked, replaced, stolen ---- */

static void
kick(void *arg)
{
    P *pp = arg;
    runqkick(pp);
    put(pp, true);
    runqkick(pp);
    get(pp);
}

MODEL(runq_kick, "3/1", "2/1")
{
    P *pp = queues(3);
    put(pp, false);
    put(pp, true);
    mc_thread("owner", kick, pp);
    mc_thread("thief1", steal_and_get, sched->allp[1]);
    mc_thread("thief2", steal_once, sched->allp[2]);
}

/* ---- the global queue ---- */

static void
take_share(void *arg)
{
    P *pp = arg;
    mutex_lock(&sched->lock);
    G *gp = globrunqget(sched, pp, 0);
    mutex_unlock(&sched->lock);
    if (gp != NULL)
        take(gp);
    get(pp);
}

static void
inject(void *arg)
{
    (void)arg;
    mutex_lock(&sched->lock);
    mc_note("injects %d", nput);
    globrunqput(sched, &gs[nput++]);
    mutex_unlock(&sched->lock);
}

MODEL(runq_global, "3/1", "2/0")
{
    P *pp = queues(2);
    for (int i = 0; i < 4; i++)
        globrunqput(sched, &gs[nput++]);
    mc_thread("owner", take_share, pp);
    mc_thread("thief", steal_and_get, sched->allp[1]);
    mc_thread("other", inject, NULL);
}

/* ---- looking on ---- */

static void
never_empty(void *arg)
{
    MC_CHECK(!runqempty(arg));
    MC_CHECK(!runqempty(arg));
}

/* The queue holds one goroutine or more at each instant. */
static void
keep_one(void *arg)
{
    P *pp = arg;
    put(pp, true); /* 0 to the ring */
    get(pp);       /* 1 */
    put(pp, true);
    runqkick(pp);
    get(pp); /* 0 */
    put(pp, false);
    get(pp);
}

static void
watch(uint32_t np)
{
    P *pp = queues(np);
    put(pp, true);
    mc_thread("owner", keep_one, pp);
    mc_thread("onlooker", never_empty, pp);
}

MODEL(runq_never_looks_empty, "5/0 3/1", "3/0")
{
    watch(2);
}

MODEL(runq_never_looks_empty_alone, "5/0 3/2", "3/0") /* a set of one P takes without CAS */
{
    watch(1);
}
