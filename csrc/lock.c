/* lock.c: Mutex and Note over futexsleep and futexwakeup (lock_futex.c or lock_sema.c).
 *
 * Mutex, three states (Drepper, "Futexes are tricky", the third mutex):
 *   1. lock: 0 -> 1 by CAS.  Else spin a little, then exchange in 2; whoever gets 0 out of that holds the lock
 *      (as 2: it cannot know whether others sleep, so its unlock will wake one for nothing at worst).
 *   2. unlock: 1 -> 0 by CAS.  Else exchange in 0 and wake one sleeper.
 *   After the exchange nothing of the mutex is read: a new owner may have freed it.
 * Note: sleeper 0 -> 2 by CAS, sleeps while 2; waker exchanges in 1 and wakes only if it was 2, so a wake-up that comes
 * before the sleep costs no system call.  A sleeper that times out takes its 2 back; if it cannot, it was woken.
 *
 * Rejected: handing the lock to the first sleeper (fair, but each hand-over then waits for a thread to be scheduled).
 */
#include "sys.h"

/* As in Go: four rounds of thirty pauses, then one yield, then sleep. */
#ifndef ACTIVE_SPIN /* tests/model makes them short */
#define ACTIVE_SPIN 4
#define SPIN_YIELDS 30
#endif
#define ACTIVE_SPIN_COUNT 30
#define PASSIVE_SPIN 1

/* Go: runtime.lock2 */
void
mutex_lock_slow(Mutex *mu)
{
    for (int i = 0; i < ACTIVE_SPIN + PASSIVE_SPIN; i++) {
        if (atomic_load_relaxed(&mu->key) == 0 && atomic_cas_acquire(&mu->key, 0u, 1u)) /* pairs with mutex_unlock */
            return;
        if (i < ACTIVE_SPIN) {
            for (int j = 0; j < ACTIVE_SPIN_COUNT; j++)
                cpu_relax();
        }
        else
            sys_thread_yield();
    }
    while (atomic_xchg(&mu->key, 2u) != 0)
        futexsleep(&mu->key, 2, -1);
}

/* Go: runtime.unlock2 */
void
mutex_unlock_slow(Mutex *mu)
{
    uint32_t was = atomic_xchg(&mu->key, 0u);

    if (was == 2)
        futexwakeup(&mu->key);
    else if (was == 0)
        gmp_throw("unlock of an unlocked mutex");
}

void
spin_lock_slow(Spin *s)
{
    for (int i = 0;; i++) {
        if (atomic_load_relaxed(&s->key) == 0 && atomic_cas_acquire(&s->key, 0u, 1u)) /* pairs with spin_unlock */
            return;
        if (i < 2 * ACTIVE_SPIN)
            for (int j = 0; j < ACTIVE_SPIN_COUNT; j++)
                cpu_relax();
        else if (i < SPIN_YIELDS)
            sys_thread_yield(); /* its holder may wait for this CPU */
        else
            sys_usleep(i < SPIN_YIELDS + 10 ? 20 : 500);
    }
}

void
note_clear(Note *n)
{
    atomic_store_relaxed(&n->key, 0u);
}

/* Go: runtime.notewakeup */
void
note_wakeup(Note *n)
{
    uint32_t was = atomic_xchg(&n->key, 1u);

    if (was == 2)
        futexwakeup(&n->key);
    else if (was == 1)
        gmp_throw("note woken twice");
}

bool
note_sleep(Note *n, int64_t timeout_ns)
{
    return note_sleep_intr(n, timeout_ns, NULL, NULL, NULL);
}

/* Go: runtime.notetsleep */
bool
note_sleep_intr(Note *n, int64_t timeout_ns, uint32_t *word, void (*look)(void *), void *arg)
{
    int64_t deadline = 0, left = -1;

    if (atomic_load_acquire(&n->key) == 1) /* pairs with the exchange in note_wakeup */
        return true;
    if (timeout_ns == 0)
        return false;
    if (timeout_ns > 0) {
        int64_t now = nanotime();
        deadline = timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
        left = timeout_ns;
    }
    if (!atomic_cas(&n->key, 0u, 2u)) {
        GMP_CHECK(atomic_load(&n->key) == 1); /* else two threads sleep on one note */
        return true;
    }
    for (;;) {
        uint32_t seen = word != NULL ? atomic_load(word) : 0; /* before the look: see futexsleep2 */
        if (look != NULL)
            look(arg);
        if (word != NULL)
            futexsleep2(&n->key, 2, word, seen, left);
        else
            futexsleep(&n->key, 2, left);
        if (atomic_load_acquire(&n->key) != 2) /* pairs with the exchange in note_wakeup */
            return true;
        if (timeout_ns > 0) {
            left = deadline - nanotime();
            if (left <= 0)
                return !atomic_cas(&n->key, 2u, 0u);
        }
    }
}

void
note_free(Note *n)
{
    (void)n;
}
