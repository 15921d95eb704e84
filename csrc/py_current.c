/* py_current.c: where CPython keeps, on each thread, its pointer to the current thread state.
 *
 * From 3.12 on PyThreadState_Swap drops the GIL and takes it again, which is two thirds of the price of a switch, and offers
 * it to a computing thread each time.  tstate_swap can do better if it may write that pointer itself.  The pointer is a
 * thread-local variable that CPython does not export; from 3.15 on what PyGILState_* uses is another one.  So they are looked
 * for: among the words of this thread's thread-local blocks the one that follows every PyThreadState_Swap, and the one that
 * follows it but stays when no thread state is current.  Either there is exactly one of each, or switches go on by
 * PyThreadState_Swap.  Their places within their block are the same on all threads.
 */
#include "py_gmp.h"

typedef struct Word {
    const void *object; /* whose block it is in: see sys_tls_blocks */
    size_t offset;
    void **at; /* on the thread that looks */
} Word;

#define MAX_WORDS 32

typedef struct Search {
    const void *value;
    Word found[MAX_WORDS];
    int n;
} Search;

static Word words[PY_CURRENT_WORDS];
static int nwords; /* 0: not found, or not wanted */

static GMP_UNUSED bool
collect(void *arg, const void *object, void *block, size_t size)
{
    Search *s = arg;
    for (size_t at = -(uintptr_t)block % sizeof(void *); at + sizeof(void *) <= size; at += sizeof(void *)) {
        void **word = (void **)((char *)block + at);
        if (*word != s->value)
            continue;
        if (s->n == MAX_WORDS)
            return true;
        s->found[s->n++] = (Word){object, at, word};
    }
    return false;
}

static GMP_UNUSED void
keep(Search *s, const void *value)
{
    int n = 0;
    for (int i = 0; i < s->n; i++)
        if (*s->found[i].at == value)
            s->found[n++] = s->found[i];
    s->n = n;
}

/* On the importing thread, attached. */
void
current_init(void)
{
#if PY_VERSION_HEX >= 0x030C0000 && !defined(Py_DEBUG)
    const char *wanted = getenv("GMP_SWAP");
    if (wanted != NULL && strcmp(wanted, "cpython") == 0)
        return;
    PyThreadState *ts = PyThreadState_Get();
    PyThreadState *other = PyThreadState_New(PyInterpreterState_Get());
    if (other == NULL)
        return;
    Search current = {.value = ts}, *gilstate = NULL;
    bool complete = sys_tls_blocks(collect, &current);
    Search all = current;
    PyThreadState_Swap(other);
    keep(&current, other);
    keep(&all, other);
    PyThreadState_Swap(NULL);
    keep(&current, NULL);
    keep(&all, other);
    PyThreadState_Swap(ts);
    keep(&current, ts);
    keep(&all, ts);
    PyThreadState_Clear(other);
    PyThreadState_Delete(other);
#if PY_CURRENT_WORDS == 2
    gilstate = &all;
#endif
    if (!complete || current.n != 1 || (gilstate != NULL && gilstate->n != 1))
        return;
    words[0] = current.found[0];
#if PY_CURRENT_WORDS == 2
    words[1] = all.found[0];
#endif
    nwords = PY_CURRENT_WORDS;
#endif
}

static bool
locate(void *arg, const void *object, void *block, size_t size)
{
    void ***at = arg;
    for (int i = 0; i < nwords; i++)
        if (words[i].object == object && words[i].offset + sizeof(void *) <= size)
            at[i] = (void **)((char *)block + words[i].offset);
    return false;
}

/* The words of the calling thread, mp's, attached as ts. */
void
current_find(M *mp, PyThreadState *ts)
{
    void **at[PY_CURRENT_WORDS] = {0};
    mp->tls[0] = mp->tls[1] = NULL;
    if (nwords == 0 || !sys_tls_blocks(locate, at))
        return;
    for (int i = 0; i < nwords; i++)
        if (at[i] == NULL || *at[i] != ts)
            return;
    for (int i = 0; i < nwords; i++)
        mp->tls[i] = at[i];
}

void **
current_word(int i)
{
    void **at[PY_CURRENT_WORDS] = {0};
    return i >= 0 && i < nwords && sys_tls_blocks(locate, at) ? at[i] : NULL;
}

bool
current_found(void)
{
    return nwords != 0;
}
