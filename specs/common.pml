/* common.pml -- what the models share: phases, outcomes, the circuit breaker, and how a step is watched.
 *
 * How to read a model.  Promela's `do :: a :: b od` repeats, each time taking any one option whose guard holds; SPIN
 * explores every choice in every order.  Each option here is one `d_step`: it happens whole, as one step of the
 * protocol.  A step that changes a variable marked [durable] is exactly one LMDB write transaction.  After every step
 * all invariants are asserted.  A variable marked [ghost] is no part of the system: it remembers what was promised.
 *
 * -DM_NAME removes one safeguard; `specs/README.md` lists them and the property that must then fail.
 * -DEMIT prints the graph of states, -DFOLLOW follows a recorded audit log.
 */

/* The phases of an attempt, as in statemachine/machine.py.  ASKING and LEASING are idle there: the attempt has its
   mark, and has not been admitted.  OFFERED and DOUBT are validated there: the draft is handed to the committer. */
#define IDLE        0
#define ASKING      1          /* the head is read and the mark is filled; the breaker was not asked yet */
#define LEASING     2          /* the breaker is open and has cooled: this attempt wants its one probe */
#define SNAPSHOTTED 3
#define MUTATING    4
#define VALIDATED   5
#define OFFERED     6          /* the commit waits for its turn; no user code runs any more */
#define COMMITTED   7
#define ROLLEDBACK  8
#define REFUSED     9          /* breaker-open */
#define DOUBT       10         /* the commit raised, and nobody knows yet whether it is durable */
#define DOWN        11         /* the process is dead */
#define OPENING     12         /* it has a new owner's key and file of marks, and settles what the dead left */

/* Outcomes in the audit log, and in marks that have ended. */
#define NONE         0
#define O_COMMITTED  1
#define O_ROLLEDBACK 2
#define O_CONFLICTED 3
#define O_REFUSED    4
#define O_INTERRUPTED 5

/* A mark: a slot of the owner's locked file.  It survives the death of its process, and maybe a power cut. */
#define FREE    0
#define WAITING 1              /* no user code runs: a death now blames nobody */
#define RUNNING 2              /* user code runs */
#define ENDED   3              /* + outcome: the row that the next commit, or the next opening, writes */

/* Modes of a circuit breaker. */
#define CLOSED        0
#define OPEN          1
#define HALF          2
#define FORCED_OPEN   3
#define FORCED_CLOSED 4

#ifdef FOLLOW
#define num int                /* a recorded log is longer than any bound */
#else
#define num byte
#endif

/* How a step is watched.  PRE and POST surround it; SAW(n) notes that a branch was taken, outside of the state. */
#if defined(EMIT)
c_code { \#include "emit.h" }
#define PRE       c_code { emit_pre(); }
#define POST(n,r) CHECK(); c_code { emit_post(n, r); }
#define MAY(n,r)  (true)
#elif defined(FOLLOW)
c_code { \#include "follow.h" }
#define PRE       c_code { follow_pre(); }
#define POST(n,r) c_code { follow_post(n, r); }
#define MAY(n,r)  (!strayed)
hidden int limit;              /* how many failures open a breaker, or probes close it: the log says when they did */
#else
#define PRE       skip
#define POST(n,r) CHECK()
#define MAY(n,r)  (true)
#endif

c_code {
  static long long seen[64];
  static void tell_seen(void) { int w; for (w = 0; w < 64; w++) if (seen[w]) printf("SEEN %d %lld\n", w, seen[w]); }
}
#define SAW(w) c_code { seen[w]++; }

/* Branches that must occur: `specs/README.md` explains them, and the checker demands each of its model. */
#define W_PROBE_GIVEN_BACK  0
#define W_LATE_SUCCESS      1
#define W_PROBE_CLOSES      2
#define W_LATE_FAILURE      3
#define W_PROBE_REOPENS     4
#define W_FAILURES_OPEN     5
#define W_PROBE_COUNTS      6

#ifdef FOLLOW
#define OKS limit
#endif
#ifndef OKS
#define OKS 1                  /* successful probes in succession that close a breaker */
#endif

typedef Breaker {
  byte mode;
  byte fails;                  /* consecutive failures */
  byte wins;                   /* successful probes in succession */
  num  gen;                    /* grows with every change of mode, and of who holds the probe */
  num  probe;                  /* attempt + 1 that holds the one probe of a half-open breaker; 0: it is free */
  bit  cooled;                 /* the cooldown of an open breaker is over */
};

/* Moves of a breaker; `statemachine/breaker.py` has the same functions, by the names on the right. */
inline B_RESET(br, to)  { br.mode = to; br.gen++; br.fails = 0; br.wins = 0; br.probe = 0; br.cooled = 0 }
inline B_OPENED(br)     { B_RESET(br, OPEN) }                                       /* opened */
inline B_CLOSED(br)     { B_RESET(br, CLOSED) }                                     /* let_go */
inline B_FORCED(br, to) { B_RESET(br, to) }                                         /* forced */
inline B_LEASED(br, at) { br.mode = HALF; br.gen++; br.cooled = 0; br.probe = at + 1 }      /* lease */
inline B_RELEASED(br, at) {                                                         /* released */
  if
  :: br.mode == HALF && br.probe == at + 1 ->
#ifndef M_PROBE_LEAK
     br.gen++; br.probe = 0;
#endif
     SAW(W_PROBE_GIVEN_BACK)
  :: else
  fi
}

#ifdef M_NO_GENERATION
#define LATE(br, since) (br.mode == FORCED_CLOSED)
#else
#define LATE(br, since) (since != br.gen || br.mode == FORCED_CLOSED)
#endif

inline B_SUCCESS(br, at, since) {                                                   /* settle, "success" */
  if
  :: LATE(br, since) -> SAW(W_LATE_SUCCESS)
  :: else ->
     if
     :: br.mode == HALF && br.probe == at + 1 && br.wins + 1 >= OKS -> B_CLOSED(br); SAW(W_PROBE_CLOSES)
     :: br.mode == HALF && br.probe == at + 1 && br.wins + 1 < OKS -> br.wins++; br.gen++; br.probe = 0; SAW(W_PROBE_COUNTS)
     :: br.mode == CLOSED -> br.fails = 0
     :: else
     fi
  fi
}
inline B_FAILURE(br, at, since, max) {                                              /* settle, "failure" */
  if
  :: LATE(br, since) -> SAW(W_LATE_FAILURE)
  :: else ->
     if
     :: br.mode == HALF && br.probe == at + 1 -> B_OPENED(br); SAW(W_PROBE_REOPENS)
     :: br.mode == CLOSED && br.fails + 1 >= max -> B_OPENED(br); SAW(W_FAILURES_OPEN)
     :: br.mode == CLOSED && br.fails + 1 < max -> br.fails++
     :: else
     fi
  fi
}
