/* runtime.h: G, M, P and Sched: the map of the core.
 *
 *   G  a goroutine: a saved context, a stack slot, a class, a state.
 *   M  an OS thread that runs goroutines.  Any thread may become one: the core's own ("pool") threads, whose g0 is the
 *      thread's stack; and threads of other origin ("adopted"), whose own stack is a G locked to them (thread_g) and
 *      whose g0 is a slab stack, from which they run other goroutines while thread_g waits.
 *   P  the right to run goroutines of one set, with a local run queue.  An M needs one to pick goroutines, not to go on
 *      running one: an M whose P was taken goes on as a plain thread until its next scheduling point.
 *   Sched  one set of Ps with its global queue, idle lists and spinning count.  There are two: SET_PYTHON has one P (on a
 *      GIL build one M runs Python at a time), SET_NATIVE has GOMAXPROCS.  Same code, two instances.
 *
 * The core knows Python only as a Class: hooks on each G that attach and detach what the goroutine needs to run.
 *
 * Who may touch what
 *   P.owner is the lock of a P: 0 idle; M = that M is in the scheduler; M|P_RUNNING = that M runs a goroutine.  An M enters
 *   the scheduler by CAS M|P_RUNNING -> M (p_enter) and leaves by a store (p_exit); sysmon takes the P of a running M by
 *   CAS M|P_RUNNING -> 0.  So the owner-only fields of a P are touched only between p_enter and p_exit.
 *   Lock order: channel locks (by address) < Timers.lock < Sched.lock < stack locks.  Nobody waits for the GIL, and no
 *   Python code runs, while holding any of them or while in the scheduler with a P, except in Class.swap and Class.resume
 *   (which wait for the GIL and hold no lock).
 */
#ifndef GMP_RUNTIME_H
#define GMP_RUNTIME_H

#include "gobuf.h"
#include "stack.h"
#include "sys.h"

typedef struct G G;
typedef struct M M;
typedef struct P P;
typedef struct Sched Sched;
typedef struct Sudog Sudog;
typedef struct Timer Timer;
typedef struct Start Start;

/* ---- Class: what a kind of goroutine needs around its C stack ----
 * A set has up to SET_CLASSES of them, that differ in their stack and index only: the set's own code looks at Sched.cls. */
#define SET_CLASSES 4
typedef struct Class {
    const char *name;
    size_t g_size; /* bytes of the G and what the class appends to it; the C stack begins below it (slot_g) */
    size_t above;  /* bytes left to the class between its G and the top of the slot (python: frames) */
    StackClass stack;
    uint8_t index;     /* among the classes of the set */
    uint8_t fill_size; /* of what newproc_class's arg points to, for late_fill; up to FILL_MAX */
    bool mask_signals; /* pool threads take no signals: the stacks are too small for handlers */
    bool own_threads;  /* adopted threads, but for Sched.mainm, run no goroutine but their own while they wait */
    /* On the new goroutine's stack, `from` saved and committed: make the thread `to`'s.  May block (GIL). */
    void (*swap)(G *from, G *to);
    /* On g0: make the thread gp's / no one's.  resume may block. */
    void (*resume)(G *gp);
    void (*suspend)(G *gp);
    /* Called once for a new slot and never again; negative GMP_E... refuses. */
    int (*create)(G *gp);
    /* sysmon, no lock, no GIL: is gp, which is running, in a call that let go of the interpreter? */
    bool (*detached)(G *gp);
    /* All Ms of the set are idle, nothing is runnable, no timer is set: a deadlock, unless someone unknown to the core can
     * wake a goroutine.  No lock is held.  Returns 0, or the ns after which to ask again. */
    int64_t (*idle)(Sched *sched);
    /* The address of gp's first function, for a message (may be NULL). */
    void *(*function)(G *gp);
    /* gp will run soon: what of it is not in the G (may be NULL). */
    void (*prefetch)(G *gp);
    /* What a goroutine begins with that was queued as a Start: its entry, and what fills the G in; inside the scheduler, without
     * the GIL: plain stores only. */
    void (*start_entry)(G *gp);
    void (*start_fill)(G *gp, Start *st);
    /* What is always newproc_class's fill, when its entry is always start_entry: goroutines may get their G later, with a copy
     * of what arg points to.  No create then.  Or NULL. */
    void (*late_fill)(G *gp, void *arg);
    /* sysmon, and the main thread when a signal has disturbed its sleep: wake the main goroutine if one waits for it. */
    void (*poll_signals)(void);
    bool (*signal_waits)(void);     /* has one come that was not handled yet?  Any thread */
    uint32_t *(*signal_word)(void); /* changes as a signal comes; or NULL */
    /* sysmon: does an M wait in resume?  If it has waited for long, see that it gets what it waits for. */
    bool (*hurry)(int64_t now);
} Class;

/* ---- Timer ---- */
typedef void (*TimerFn)(void *arg, uint32_t seq);
struct Timer {
    int64_t when;    /* ns of nanotime; guarded by the heap's lock, as is all of Timer */
    int32_t index;   /* place in the heap + 1; 0 when not in one */
    uint32_t seq;    /* handed to fn, so that a firing that lost a race is recognised */
    uint32_t life;   /* of the heap, when it was armed: another one means that a fork has emptied the heap since */
    uint16_t firing; /* calls of fn that go on now */
    bool stopping;   /* timer_stop waits for them */
    bool
        stoppable; /* set by who makes it: timer_stop works on it.  The others are not touched any more once fn is called */
    TimerFn fn; /* called without locks by whoever runs the timers; must not block */
    void *arg;
    struct Timers *heap; /* atomic: where it is, or was last */
};
typedef struct TimerEntry {
    int64_t when;
    Timer *t;
} TimerEntry;
typedef struct Timers {
    Mutex lock;
    uint32_t len, cap;
    TimerEntry *heap;    /* 4-ary, by when */
    int64_t next;        /* atomic: heap[0].when, or 0 when empty */
    struct Timers *heir; /* where timers go instead, when the P is no more; lock */
    uint32_t life;       /* forks survived */
} Timers;

/* ---- G ---- */
typedef enum GStatus { G_IDLE, G_RUNNABLE, G_RUNNING, G_WAITING, G_DEAD } GStatus;

typedef enum WaitReason {
    WAIT_NONE,
    WAIT_CHAN_RECEIVE,
    WAIT_CHAN_SEND,
    WAIT_CHAN_RECEIVE_NIL,
    WAIT_CHAN_SEND_NIL,
    WAIT_SELECT,
    WAIT_SELECT_NONE,
    WAIT_SLEEP,
    WAIT_MUTEX,
    WAIT_WAITGROUP,
    WAIT_JOIN,
    WAIT_FUTURE,
    WAIT_IO_READ,
    WAIT_IO_WRITE,
    WAIT_PARK,
    WAIT_COND,
    WAIT_REASONS
} WaitReason;
const char *wait_reason_name(WaitReason r); /* Go's words: "chan receive" ... */

struct G {
    /* What every switch and spawn touches, in one cache line. */
    Gobuf sched;          /* saved context; written by the G's own switch, read by whoever resumes it */
    G *link;              /* run queue or free list */
    M *m;                 /* the M that runs it; NULL when it does not run */
    uint32_t lastm;       /* life of the M that ran it last, or 0 */
    uint32_t waitsince;   /* coarse_now when it parked */
    M *lockedm;           /* the only M that may run it, or NULL; changed under Sched.lock */
    void (*entry)(G *gp); /* first function */
    uint32_t status;      /* atomic GStatus */
    uint32_t parkseq;     /* atomic claim word: even while parked and unclaimed, odd when claimed (see park_claim) */
    int32_t wakecode;     /* why the last park ended: GMP_OK or GMP_E...; written by the claimer */
    uint8_t waitreason;   /* WaitReason */
    uint8_t stackclass;   /* StackClass */
    bool interruptible;   /* its parks may be ended by goready_interrupt (the main goroutine) */
    bool deep;            /* parked once with more than STACK_KEEP bytes in use */

    const Class *cls;
    Sched *set;
    uint64_t goid;
    uint64_t parentid; /* goid of the goroutine that started it */
    void *stack_lo;    /* NULL for a thread's own stack */
    bool reused;       /* has died at least once */
    /* How often the goroutine has locked itself to its thread: the runtime for it, the user (Go: lockedInt, lockedExt). */
    uint8_t lockedint;
    uint16_t lockedext;
    Sudog *param; /* the Sudog that was served, for select */
    Timer timer;  /* sleep, and the timeout of any other wait */
};

/* ---- Start: a goroutine that has not begun to run and has no G yet ----
 * In a burst of spawns most goroutines would get a G, that is, touch a page, long before they run.  Instead the queue holds
 * the address of a Start (tagged by its lowest bit), and whoever takes it from the queue gives it the G that ended last. */
struct Start {
    uint32_t state; /* atomic: START_PENDING, START_BINDING (somebody fills the G in), START_BOUND */
    G *gp;          /* when bound */
    uint64_t goid, parentid;
};
enum { START_PENDING, START_BINDING, START_BOUND, START_ALONE };

/* The same for classes with a late_fill: nobody but the queue knows it.  One cache line.  See qstart.c. */
#define FILL_MAX 24
typedef struct QStart {
    Start start; /* first; START_ALONE */
    const Class *cls;
    union {
        uint64_t arg[FILL_MAX / 8]; /* newproc_class's */
        struct {
            struct QStart *next, *batch; /* free list; list of free lists */
        };
    };
} QStart;

static inline bool
is_start(G *gp)
{
    return ((uintptr_t)gp & 1) != 0;
}

/* Where the G of a slot is: at its top, less 0 to 7 cache lines that vary from slot to slot.  Slots are aligned, so without
 * this the hot lines of all goroutines would compete for the same few sets of the caches. */
#define G_COLOURS 8
#define G_COLOURS_2K 2 /* there a line is much; and neighbours in a page differ anyway */
static inline G *
slot_g(const Class *cls, void *lo)
{
    size_t size = stack_class_size(cls->stack);
    size_t colour = cls->stack == STACK_2K ? (uintptr_t)lo / size / 2 % G_COLOURS_2K : (uintptr_t)lo / size % G_COLOURS;
    return (G *)((char *)lo + size - cls->above - colour * GMP_CACHELINE - cls->g_size);
}

/* gp was not used for a while and will be soon. */
static inline void
prefetch_g(const Class *cls, G *gp)
{
    char *at = (char *)gp;
    for (size_t i = 0; i < cls->g_size; i += GMP_CACHELINE)
        __builtin_prefetch(at + i, 1);
    __builtin_prefetch(at - GMP_CACHELINE, 1);
}

/* ---- P ---- */
#define RUNQ_SIZE_DEFAULT 256
#ifndef RUNQ_SIZE /* test builds make it tiny */
#define RUNQ_SIZE RUNQ_SIZE_DEFAULT
#endif
#define P_RUNNING ((uintptr_t)1)
#define HANDOVERS 16 /* so many: see ready_local */
#ifndef GFREE_MAX    /* tests/model makes it small, and MAX_PROCS */
#define GFREE_MAX 64 /* dead goroutines of a class that a P keeps; beyond, half go to the set's list */
#endif
typedef struct GFree {
    uint32_t n;
    G *g[GFREE_MAX];
} GFree;

struct P {
    uintptr_t owner; /* atomic, see the file head */
    uint32_t id;
    Sched *set;
    P *link;   /* idle list; Sched.lock */
    bool idle; /* on the idle list; Sched.lock */

    /* Owner only. */
    uint32_t schedtick; /* counts scheduling decisions; sysmon reads it */
    uint32_t timertick; /* decisions since the clock was last read */
    uint32_t handovers; /* runnexts in a row that the owner ran itself, up to HANDOVERS; atomic, others set it to 0 */
    int64_t gdelta;     /* goroutines started minus finished on this P */
    int64_t npending;   /* Starts queued minus bound on this P */
    uint64_t goidcache, goidcacheend;
    GFree gfree[SET_CLASSES]; /* dead goroutines ready for reuse */
    QStart *qstarts;          /* free ones */
    uint32_t nqstarts;

    /* sysmon only. */
    uint32_t sysmontick;
    int64_t sysmonwhen;

    Timers timers;

    /* Local run queue: head by CAS from any M, tail by the owner; runnext by CAS.  See runq.c. */
    GMP_ALIGNED(GMP_CACHELINE) uint32_t runqhead;
    uint32_t runqtail;
    G *runnext;
    G *runq[RUNQ_SIZE];
};

/* ---- M ---- */
struct M {
    Gobuf g0; /* the scheduler's context of this thread */
    G *curg;  /* the goroutine that runs, or is about to */
    P *p;     /* may be stale when sysmon took it: p_enter tells */
    P *oldp;  /* left for a call that blocks: the first choice afterwards; may be anybody's */
    Sched *set;
    G *thread_g; /* adopted threads: their own stack; NULL for pool threads */

    /* From a switch to the first act of the context switched to. */
    G *prev;       /* who was left */
    int prevkind;  /* SwitchKind */
    G *committing; /* atomic: an interruptible goroutine whose unlockf has not returned yet */
    bool (*unlockf)(G *, void *);
    void *waitlock;

    /* Sched.lock. */
    M *link;   /* idle list */
    bool idle; /* on the idle list */
    P *nextp;  /* handed over with the wake-up */
    G *nextg;  /* run this first */
    bool wakespinning;
    uint32_t vain; /* short looks in a row that found nothing */
    G *readylocked; /* atomic for readers without the lock: thread_g is ready, but this M is busy with another goroutine */

    bool spinning;
    bool dead; /* its thread has ended; reused by the next adoption */
    bool ispool;
    bool exiting; /* a pool thread whose goroutine ended locked to it: it ends */
    bool picky;   /* atomic: runs only what is locked to it: see set_picky */
    G *lockedg; /* the goroutine beside thread_g that is locked to this M; &gnobody: this M runs nothing; Sched.lock */
    uint32_t id;
    uint32_t life; /* of this thread as an M: no two threads ever have the same, though they may use one M in turn */
    uint64_t tid;
    Note park;
    uint32_t polling; /* atomic: waits in the net poller, not on park: see wakem */
    M *alllink;       /* all Ms, push-only */
    void *local;      /* the class's, about this thread; NULL at first */
    void *g0stack;    /* slab stack of an adopted thread's g0 */
    void **tls[2];    /* for the class: words of the thread's own; NULL until it sets them */
    void *sigstack;
};

/* ---- Sched ---- */
/* Queues of goroutines are arrays of pointers, not lists through the Gs: most Gs in a long queue have left the caches, and
 * walking a list would wait for each in turn. */
typedef struct GQueue {
    G **ring;
    uint32_t cap;  /* a power of two, at least the number of goroutines of the set, so that putting cannot fail */
    uint32_t head; /* of the oldest, modulo cap */
    uint32_t n;    /* atomic for readers without the lock */
} GQueue;

/* Dead goroutines of one class. */
typedef struct GStack {
    G **g;
    uint32_t cap;  /* at least ever, so that putting cannot fail */
    uint32_t ever; /* goroutines of the class */
    uint32_t n;    /* atomic for readers without the lock */
} GStack;

#ifndef MAX_PROCS
#define MAX_PROCS 256
#endif
#define MAX_THREADS 10000
#define IDLE_MS_KEPT 4                               /* idle pool threads that stay for ever */
#define IDLE_M_NS (INT64_C(10) * 1000 * 1000 * 1000) /* how long the others do */

enum { SET_PYTHON, SET_NATIVE, SETS };

struct Sched {
    const Class *cls;
    int set;
    P *allp[MAX_PROCS]; /* entries below nallp never change */
    uint32_t nallp;     /* Ps ever made; Mutex resizing */
    uint32_t np;        /* those in use; atomic; changed by who holds all Ps, under the lock */
    Mutex resizing;     /* taken before all others */
    uint32_t ncoprimes; /* step widths for stealwork; stable while one has a P in the scheduler */
    uint16_t coprimes[MAX_PROCS];

    Mutex lock;
    GQueue runq;      /* the global queue */
    uint32_t ngs;     /* goroutines ever made, adopted threads included */
    uint32_t nslots;  /* Gs with a stack of Sched.cls, dead or alive; atomic */
    uint32_t nsystem; /* goroutines of the runtime's own, which no count shows; set by the glue */
    int64_t npending; /* Starts queued minus bound without a P; atomic */
    GStack gfree[SET_CLASSES];
    QStart *qstarts;                   /* lists of free ones; atomic for readers without the lock */
    const Class *classes[SET_CLASSES]; /* of which there are goroutines; atomic */
    int64_t gdelta;                    /* goroutines started minus finished without a P */
    P *pidle;
    uint32_t npidle; /* atomic */
    M *midle;
    uint32_t nmidle;     /* atomic */
    uint32_t nmspinning; /* atomic */
    uint32_t nm;         /* Ms alive, adopted ones included; changed under the lock */
    uint32_t npool;      /* pool threads among them */
    uint32_t npoolidle;  /* and those of them on the idle list */
    bool starved;        /* atomic: a P with work could not be given a thread; sysmon tries again */
    M *sleeper;          /* the idle M that waits for the next timer */
    int64_t sleepuntil;
    uint32_t polled;           /* atomic: some M waits in the net poller, or is about to */
    bool (*before_idle)(void); /* atomic: called without locks when a P finds nothing to run; true: look again */
    void (*overdue)(void);     /* atomic: called by sysmon, again and again while a P is in use */
    M *committer;              /* atomic: the last M on which an interruptible goroutine parked: see M.committing */
    M *mainm; /* the main thread's, once adopted: home of the goroutine that may leave it (see rescue) */
    void (*thread_begin)(void); /* what each new pool thread calls first, or NULL */
    bool mainpicky;             /* the main thread runs no goroutine but its own */
    bool stopping;              /* atomic: nothing is scheduled any more */
    uint64_t nhandoff;          /* statistics: Ps taken by sysmon */
};

extern Sched scheds[SETS];
static inline uint32_t
nallp(Sched *sched)
{
    return atomic_load_acquire(&sched->nallp); /* pairs with the release in make_ps */
}
extern M *allm; /* atomic head of the list of all Ms */

/* ---- tls ---- */
void setm(M *mp);
M *getm(void); /* the calling thread's M or NULL; never cached across a switch */
static inline G *
getg(void) /* the calling goroutine, or NULL on a thread that was never adopted */
{
    M *mp = getm();
    return mp ? mp->curg : NULL;
}

/* ---- proc.c ---- */
/* Calls fn(arg) on a stack with room: g0's instead of 2 KiB.  No switch inside.  Go: runtime.systemstack */
void systemstack(void (*fn)(void *), void *arg);
/* The same for a goroutine on a stack of any size: what fn touches of it stays with the thread, not with each goroutine. */
void g0stack(void (*fn)(void *), void *arg);
/* The heap, so called. */
void *g_malloc(size_t n);
void *g_calloc(size_t n);
void *g_realloc(void *p, size_t n);
void g_free(void *p);
/* Makes the set ready with n Ps.  Idempotent. */
int schedinit(int set, const Class *cls, uint32_t nprocs);
/* The calling thread's M; adopts the thread: thread_g (allocated by the caller, class filled in) becomes its G.  It must never be
 * freed, and between two adoptions keep cls and parkseq: sysmon or a late timer may still be looking at it. */
M *adopt_thread(Sched *sched, G *thread_g);
/* Undoes it; called as the thread ends. */
void disown_thread(M *mp);
/* Starts a goroutine of the set: takes a dead G or makes one, calls fill(gp, arg) (plain stores only: it runs inside the
 * scheduler) and makes it runnable.  entry(gp) runs on its stack and must end in goexit.  Returns its id, or 0 when memory
 * is refused; fill was not called then. */
uint64_t newproc(Sched *sched, void (*entry)(G *gp), void (*fill)(G *gp, void *arg), void *arg);
/* The same on another stack class than the set's usual one. */
uint64_t newproc_class(Sched *sched, const Class *cls, void (*entry)(G *gp), void (*fill)(G *gp, void *arg), void *arg);
/* The same, but without a G until it runs, or until bindstart asks for it; st belongs to the goroutine from now on.
 * GMP_ENOMEM: no G could be made to run it later. */
int newproc_later(Sched *sched, Start *st);
G *bindstart(Sched *sched, Start *st); /* NULL when memory is refused */
bool runq_long(Sched *sched);          /* so much is queued that a new goroutine will not run for a while */
void goready(G *gp);
void injectglist(G *list); /* goready for a list through link */
GMP_NORETURN void goexit(void);
/* Lets others run; returns false when there was no one. */
bool gosched(void);
/* Parks the calling goroutine.  unlockf runs on another stack once the goroutine is saved; false cancels the park.
 * Returns the wake code. */
int gopark(bool (*unlockf)(G *, void *), void *lock, WaitReason reason);
/* Round a call that blocks the thread, by goroutines of sets whose class does not tell sysmon: the P is handed off at once;
 * afterwards the goroutine waits for its turn.  Go: runtime.entersyscallblock, exitsyscall */
void entersyscallblock(void);
void exitsyscall(void);
int64_t num_goroutine(Sched *sched);
int64_t num_pending(Sched *sched); /* Starts that are not bound */
/* Gives the set n Ps (0: changes nothing).  How many there were, or GMP_E...  Go: runtime.GOMAXPROCS */
int gomaxprocs(Sched *sched, uint32_t n);
/* From now on the calling goroutine alone runs on its thread, and nowhere else.  Counted.  internal: for the runtime's own
 * reasons, which bind it to the very thread it is on; else it may move to another one first.  A pool thread whose goroutine
 * ends locked to it ends too.  GMP_EAGAIN: no thread could be had.  Go: runtime.LockOSThread, lockOSThread */
int lockosthread(bool internal);
void unlockosthread(bool internal);   /* does nothing when it is not locked.  Go: runtime.UnlockOSThread */
void main_keeps_thread(Sched *sched); /* for ever: see Sched.mainpicky */
/* Pool threads a set may have, at least 1; returns the limit before.  Go: debug.SetMaxThreads */
uint32_t set_max_threads(uint32_t n);
/* From now on nothing of the set runs but what is running; what parks, parks for good. */
void sched_stop(Sched *sched);
/* In a forked child: forget all Ms but the caller's and all goroutines but the current one. */
void sched_afterfork_child(Sched *sched);

/* Waits with more than one waker (timeouts, select, interrupts): the waker that claims the park may wake the G.
 *   owner: gp->wakecode = GMP_OK; seq = park_begin(gp); publish itself with seq; gopark ...
 *   waker: if (park_claim(gp, seq)) { gp->wakecode = ...; goready(gp); } */
static inline uint32_t
park_begin(G *gp)
{
    uint32_t seq = (atomic_load_relaxed(&gp->parkseq) | 1) + 1;
    atomic_store_release(&gp->parkseq,
                         seq); /* pairs with the CAS in park_claim: the claimer's wakecode comes after ours */
    return seq;
}

static inline bool
park_claim(G *gp, uint32_t seq)
{
    return atomic_cas(&gp->parkseq, seq, seq + 1);
}

/* Ends the park of an interruptible goroutine, if it is parked, with this code.  Any thread. */
bool goready_interrupt(G *gp, int code);

/* Parks with a timeout (ns; negative never) on top of gopark; parkseq must have begun.  The waker side claims. */
int gopark_timeout(bool (*unlockf)(G *, void *), void *lock, WaitReason reason, uint32_t seq, int64_t timeout);
/* Arms a timer from anywhere, inside the scheduler or not. */
int timer_arm(Sched *sched, Timer *t, int64_t when, TimerFn fn, void *arg, uint32_t seq);
/* Sleep.  Go: time.Sleep */
int gosleep(int64_t ns);

#define STACK_KEEP (16 * 1024) /* a dead goroutine keeps this much of its stack resident */

/* ---- runq.c ---- */
void runqput(P *pp, G *gp, bool next);
G *runqget(P *pp);
void runqkick(P *pp);
bool runqempty(P *pp);
uint32_t runqlen(P *pp);
/* Calls fn for each Start in the queues that has no G yet, under Sched.lock: fn must not come back here.  Whoever calls sees to
 * it that none is freed meanwhile.  A Start on its way from queue to queue may be missed. */
void each_start(Sched *sched, void (*fn)(Start *st, void *arg), void *arg);
G *runqsteal(P *pp, P *victim, bool stealnext);
void globrunqput(Sched *sched, G *gp);                            /* Sched.lock */
void globrunqputbatch(Sched *sched, G *const *batch, uint32_t n); /* Sched.lock */
int globrunqreserve(Sched *sched, uint32_t n);                    /* Sched.lock; GMP_ENOMEM */
G *globrunqget(Sched *sched, P *pp, uint32_t max);                /* Sched.lock */

/* ---- timer.c ---- */
/* GMP_ENOMEM; GMP_ESTATE: by fn, while timer_stop waits for it. */
int timer_add(Timers *ts, Timer *t, int64_t when, TimerFn fn, void *arg, uint32_t seq);
bool timer_del(Timer *t); /* true when it had not fired */
/* The same, and afterwards fn does not run any more: t may be freed.  fn must not wait for what the caller holds. */
bool timer_stop(Timer *t);
/* Runs what is due.  Returns when the next one is due, or 0. */
int64_t timers_run(Timers *ts, int64_t now);
void timers_clear(Timers *ts);
int timers_move(Timers *from, Timers *to); /* and all that are added later, until timers_reopen; GMP_ENOMEM */
void timers_reopen(Timers *ts);
void timers_afterfork_child(Timers *ts); /* forgets them: another thread may have been at the heap */

/* ---- sysmon.c ---- */
/* Seconds of nanotime, for stamps that cost nothing: at most some 10 ms old while a P is in use; older when none is. */
extern uint32_t coarse_now;
void sysmon_start(void);
void sysmon_wake(void); /* a P is in use: look after it */
/* Has sysmon call fn soon, once, with no lock and no P.  False when there is no sysmon.  Async-signal-safe. */
bool sysmon_call(void (*fn)(void));
void sysmon_afterfork_child(void);

#endif
