/* reset.pml -- the resets of one user: attempts of several processes, their marks, the breaker, crashes, and recovery.
 *
 * Bounds: NR processes, NA attempts each (the last one NB); environment budgets CRASHES, CUTS (of power), FENCES, FORCES (an operator's
 * word on the breaker), FAULTS (commits that fail or stay in doubt), INVALID (candidates), MEAS (measurements accepted meanwhile); THRESH
 * failures open the breaker, SMAX deaths make an input suspect.
 *
 * Left to other models: groups of measurements (batch.pml), several users (containment.pml), damage (history.pml).
 */
#ifndef NR
#define NR 2
#endif
#ifndef NA
#define NA 2
#endif
#ifndef NB
#define NB NA                  /* attempts of the last process */
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef CUTS
#define CUTS 1
#endif
#ifndef FENCES
#define FENCES 1
#endif
#ifndef FORCES
#define FORCES 1
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef MEAS
#define MEAS 1
#endif
#ifdef FOLLOW
#define THRESH limit
#endif
#ifndef THRESH
#define THRESH 2
#endif
#ifndef SMAX
#define SMAX 1
#endif
#ifndef INVALID
#define INVALID 1
#endif
#define A       (NR * NA)
#define NV      (A + MEAS + 1)
#define BY_MEAS 255

/* Branches that must occur in this model. */
#define W_ADMITTED          10
#define W_REFUSED_OPEN      11
#define W_REFUSED_HALF      12
#define W_REFUSED_FORCED    13
#define W_REFUSED_SUSPECT   14
#define W_LEASED            15
#define W_LEASE_LOST        16
#define W_COMMITTED         17
#define W_CONFLICTED        18
#define W_CONFLICTED_PROBE  19
#define W_BREAKER_MOVED     20
#define W_COMMIT_FENCED     21
#define W_COMMIT_FAILED     22
#define W_DOUBT_DURABLE     23
#define W_DOUBT_NOT_DURABLE 24
#define W_INVALID           25
#define W_FAILED            26
#define W_LEFT              27
#define W_ROLLBACK_FENCED   28
#define W_MARK_WRITTEN      29
#define W_MARK_HAD_OUTCOME  30
#define W_SETTLED_RUNNING   31
#define W_SETTLED_WAITING   32
#define W_SETTLED_ENDED     33
#define W_SETTLED_HAD_ROW   34
#define W_FORCED            35
#define W_RELEASED          36
#define W_CUT_KEPT_MARKS    37
#define W_CUT_LOST_MARKS    38
#define W_LEASE_FENCED      39
#define W_FENCED_PROBE      54
#define W_SETTLE_FENCED     53
#define W_CRASH_IN          40 /* + phase of the process that died, up to 52 */

#include "common.pml"

/* [durable] in LMDB */
num     head;                  /* the user's newest version */
num     cx, cP;                /* the version that wrote each component of the stored state */
bit     bad_head;              /* the stored state breaks a rule */
num     author[NV];            /* who wrote a version: attempt + 1, BY_MEAS, or nobody */
byte    out[A];                /* an attempt's outcome in the audit log */
byte    rows[A];               /* how many outcome rows it has */
bit     key[NR];               /* the key of the process's present owner: without it nothing of that owner can be committed */
Breaker b;
int     died;                  /* deaths of processes while this input ran: two bits for each base version */
/* [marks] in the owner's file: they survive the process */
byte    mark[A];
num     mbase[A];              /* the base version, as the mark says it */
bit     orphan[A];             /* the mark lies in the file of a dead owner */
/* [volatile] */
byte    phase[NR];
num     used[NR];              /* attempts begun */
num     base[NR];              /* the version that the snapshot was taken from */
num     gen[NR];               /* the breaker's generation at admission */
num     wx[NR], wP[NR];        /* the working copy: which version each component is for */
byte    bad[NR];               /* 1: the candidate breaks a rule, which nobody has found yet; 2: it was found, and dropped */
int     susp[NR];              /* the suspects in the breaker's record that a probe is leased from */
/* [ghost] */
bit     begun[A];
bit     lost[A];               /* a power cut took its mark before it had any effect: it needs no row */
num     acked[A];              /* the version acknowledged to its caller */
num     abase[A];              /* the base of a committed attempt, + 1 */
num     meas_at;               /* the version acknowledged to the measurement's writer */
bit     fenced[NR];
byte    crashes, cuts, fences, forces, faults, meas, invalid;
#ifdef M_NO_SYNC
num     unsynced;              /* the attempt + 1 whose commit is in the page cache alone */
#endif
#ifdef FOLLOW
int     ti;                    /* the next row of the recorded log */
bit     strayed;               /* the step contradicts the log */
hidden byte suspect[NR];       /* the log says that this attempt was refused as one */
#endif

#define CUR(r)  (r * NA + used[r] - 1)
#define ME      PProcess->r    /* r, as embedded C sees it */
#define FREE_TO_RUN(r) (phase[r] == SNAPSHOTTED || phase[r] == VALIDATED || (phase[r] == MUTATING && bad[r] == 2))
#define BUSY(r) (phase[r] == SNAPSHOTTED || phase[r] == MUTATING || phase[r] == VALIDATED)
#define DIED(v) ((died >> (2 * (v))) & 3)
#define OVER(r) (phase[r] == COMMITTED || phase[r] == ROLLEDBACK || phase[r] == REFUSED)
hidden int i, j, n;            /* scratch, no part of the state */
hidden byte was_mode, was_fails;
hidden num  was_gen;

/* The invariants, asserted after every step. */
inline CHECK() {
  /* INV-01: the components of the stored state are of one version, and that is the head. */
  assert(cx == head && cP == head);
  /* INV-04: the stored state passed its validation. */
  assert(!bad_head);
  /* INV-07: half-open has at most one probe, no other mode has any. */
  assert(b.mode == HALF || b.probe == 0);
  i = 0;
  do
  :: i < NV ->
     /* INV-05: version numbers have no gaps. */
     assert((author[i] != 0) == (i != 0 && i <= head));
     /* INV-07: an input on which processes died is refused after SMAX deaths; attempts already begun may add theirs. */
     assert(DIED(i) <= SMAX + NR - 1);
     i++
  :: else -> break
  od;
  i = 0;
  do
  :: i < A ->
     /* INV-06: of two attempts from one base version at most one commits. */
     j = 0;
     do :: j < i -> assert(abase[i] == 0 || abase[i] != abase[j]); j++ :: else -> break od;
     i++
  :: else -> break
  od;
  /* INV-02: an acknowledged measurement stays. */
  assert(meas_at == 0 || author[meas_at] == BY_MEAS);
  i = 0;
  do
  :: i < A ->
     /* INV-02: an acknowledged reset stays in the log for ever. */
     assert(acked[i] == 0 || (acked[i] <= head && author[acked[i]] == i + 1));
     /* INV-03: at most one outcome; and an attempt that began has it, or a mark that will become it. */
     assert(rows[i] <= 1 && (out[i] == NONE) == (rows[i] == 0));
     assert(!begun[i] || lost[i] || out[i] != NONE || mark[i] != FREE);
     /* INV-03: the outcome says committed exactly where the attempt wrote one version. */
     j = 0; n = 0;
     do :: j < NV -> if :: author[j] == i + 1 -> n++ :: else fi; j++ :: else -> break od;
     assert(n == (out[i] == O_COMMITTED));
     i++
  :: else -> break
  od;
  i = 0; j = 0; n = 0; was_mode = 0; was_fails = 0; was_gen = 0
}

/* Part of a write transaction: an attempt's one outcome. */
inline ROW(a, o) { out[a] = o; rows[a]++ }

/* INV-07: a result of an earlier generation changes nothing; LOOK before it and SAME after it. */
inline LOOK()   { was_mode = b.mode; was_fails = b.fails; was_gen = b.gen }
inline SAME(r)  { assert(gen[r] == was_gen || (b.mode == was_mode && b.fails == was_fails && b.gen == was_gen)) }
#ifdef FOLLOW
#define CLEAR(r) skip
#else
inline CLEAR(r) { died = died & ~(3 << (2 * base[r])) }    /* that attempt has completed: it is no suspect any more */
#endif
inline BLAME(a) {                                          /* the input of attempt a, at its base version, is suspect */
  assert(mark[a] == RUNNING);                              /* INV-07: killing a healthy process blames nobody */
#ifdef FOLLOW
  skip
#else
  died = died + (1 << (2 * mbase[a]))
#endif
}
inline FORGET(r) { base[r] = 0; gen[r] = 0; wx[r] = 0; wP[r] = 0; bad[r] = 0; susp[r] = 0 }

/* The last part of every write transaction of an owner: the rows of its marks that have ended. */
inline FLUSH(r) {
  i = r * NA;
  do
  :: i < (r + 1) * NA ->
     if
     :: mark[i] >= ENDED && !orphan[i] ->
        if
#ifdef M_SECOND_OUTCOME
        :: true -> ROW(i, mark[i] - ENDED)
#else
        :: out[i] == NONE -> ROW(i, mark[i] - ENDED); B_RELEASED(b, i); SAW(W_MARK_WRITTEN)
        :: else -> SAW(W_MARK_HAD_OUTCOME)
#endif
        fi;
        mark[i] = FREE; mbase[i] = 0
     :: else
     fi;
     i++
  :: else -> break
  od
}

/* --- the steps of an attempt -------------------------------------------------------------------------------------- */

inline BEGIN(r) {              /* read the head, fill the mark: no transaction */
  used[r]++; begun[CUR(r)] = 1; base[r] = head; wx[r] = head; wP[r] = head;
#ifndef M_NO_MARK
  mark[CUR(r)] = WAITING; mbase[CUR(r)] = head;
#endif
  phase[r] = ASKING
}

inline END(r, o)  { ROW(CUR(r), o); mark[CUR(r)] = FREE; mbase[CUR(r)] = 0 }
inline REFUSE(r)  { mark[CUR(r)] = ENDED + O_REFUSED; phase[r] = REFUSED }

#ifdef M_FORCED_TIMER
#define COOLED (b.cooled || b.mode == FORCED_OPEN || (b.mode == HALF && b.probe == 0))
#elif defined(M_NEVER_ADMITS)
#define COOLED (b.mode == HALF && b.probe == 0)
#else
#define COOLED ((b.mode == OPEN && b.cooled) || (b.mode == HALF && b.probe == 0))
#endif
#if defined(M_NO_SUSPECT)
#define IS_SUSPECT(r) (false)
#elif defined(FOLLOW)
#define IS_SUSPECT(r) (suspect[r])                         /* a row does not tell its input */
#else
#define IS_SUSPECT(r) (DIED(base[r]) >= SMAX)
#endif

inline ADMIT(r) {              /* the breaker said yes: user code may run from here on */
  gen[r] = b.gen; susp[r] = 0;
#ifndef M_NO_MARK
  mark[CUR(r)] = RUNNING;
#endif
  phase[r] = SNAPSHOTTED
}

inline ASK(r) {                /* read the breaker: no transaction */
  if
  :: IS_SUSPECT(r) -> REFUSE(r); SAW(W_REFUSED_SUSPECT)
  :: else ->
     if
     :: b.mode == CLOSED || b.mode == FORCED_CLOSED -> ADMIT(r); SAW(W_ADMITTED)
     :: b.mode == HALF && b.probe != 0 -> REFUSE(r); SAW(W_REFUSED_HALF)
     :: COOLED -> gen[r] = b.gen; susp[r] = died; phase[r] = LEASING
     :: b.mode == OPEN && !COOLED -> REFUSE(r); SAW(W_REFUSED_OPEN)
     :: b.mode == FORCED_OPEN && !COOLED -> REFUSE(r); SAW(W_REFUSED_FORCED)
     fi
  fi
}

#ifdef M_LEASE_NO_CAS
#define STALE(r) (false)
#else
#define STALE(r) (gen[r] != b.gen || susp[r] != died)
#endif
#ifdef M_NO_FENCE
#define FENCED(r) (false)
#else
#define FENCED(r) (!key[r])
#endif
#ifdef M_NO_CAS
#define LOST(r) (false)
#else
#define LOST(r) (base[r] != head)
#endif
#ifdef M_NO_BREAKER_CHECK
#define MOVED(r) (false)
#else
#define MOVED(r) (gen[r] != b.gen || b.mode == OPEN || b.mode == FORCED_OPEN)
#endif

inline LEASE(r) {              /* one transaction, compare-and-set on the breaker's record */
  if
  :: FENCED(r) -> mark[CUR(r)] = ENDED + O_ROLLEDBACK; FORGET(r); phase[r] = IDLE; SAW(W_LEASE_FENCED)
  :: else ->
     if
     :: STALE(r) -> REFUSE(r); SAW(W_LEASE_LOST)
     :: else ->
        /* INV-07: one probe, and an operator's word beats every timer */
        assert((b.mode == OPEN || b.mode == HALF) && b.probe == 0);
        B_LEASED(b, CUR(r)); FLUSH(r); ADMIT(r); SAW(W_LEASED)
     fi
  fi
}

inline MUTATE(r) {             /* the first operation sets x, the second P; each makes a candidate */
  if :: wx[r] == base[r] -> wx[r] = base[r] + 1 :: else -> wP[r] = base[r] + 1 fi;
  bad[r] = 0; phase[r] = MUTATING
}
inline MUTATE_BADLY(r) {       /* the second operation makes a candidate that breaks a rule */
  invalid++; wP[r] = base[r] + 1; bad[r] = 1; phase[r] = MUTATING
}

inline ROLLBACK(r, failed) {   /* one transaction: outcome and breaker; the before-image was never touched */
  if
  :: FENCED(r) -> mark[CUR(r)] = ENDED + O_ROLLEDBACK; SAW(W_ROLLBACK_FENCED)
  :: else ->
     LOOK();
     if
     :: failed -> CLEAR(r); B_FAILURE(b, CUR(r), gen[r], THRESH); SAME(r); SAW(W_FAILED)
     :: else -> B_RELEASED(b, CUR(r)); SAW(W_LEFT)
     fi;
     END(r, O_ROLLEDBACK); FLUSH(r)
  fi;
  bad[r] = 0; phase[r] = ROLLEDBACK
}

inline VALIDATE(r) {           /* a candidate that passes is a checkpoint; of one that does not, the phase says nothing */
#ifdef M_SKIP_VALIDATION
  phase[r] = VALIDATED
#else
  if
  :: bad[r] == 0 -> phase[r] = VALIDATED
  :: bad[r] == 1 -> bad[r] = 2; wP[r] = base[r]; SAW(W_INVALID)
  fi
#endif
}

inline OFFER(r) {              /* the draft is made; from here on a death is not the mutation's */
#ifdef M_EARLY_ACK
  acked[CUR(r)] = base[r] + 1;
#endif
  if :: mark[CUR(r)] == RUNNING -> mark[CUR(r)] = WAITING :: else fi;
  phase[r] = OFFERED
}

inline EFFECT(r) {             /* what a commit writes: version, outcome and breaker, all of it in one transaction */
  assert(!fenced[r]);                                                   /* INV-06: a fenced owner commits nothing */
  assert(b.mode != OPEN && b.mode != FORCED_OPEN && gen[r] == b.gen);   /* INV-07: what the commit re-checks */
  head = base[r] + 1; author[head] = CUR(r) + 1; abase[CUR(r)] = base[r] + 1; cx = wx[r];
#ifndef M_TORN
  cP = wP[r];
#endif
  bad_head = (bad[r] == 1);
#ifndef M_SPLIT_OUTCOME
  LOOK(); B_SUCCESS(b, CUR(r), gen[r]); SAME(r); CLEAR(r); ROW(CUR(r), O_COMMITTED);
#endif
#ifdef M_NO_SYNC
  unsynced = CUR(r) + 1;
#endif
  skip
}

inline COMMIT(r) {             /* one transaction */
  if
  :: FENCED(r) -> mark[CUR(r)] = ENDED + O_ROLLEDBACK; phase[r] = ROLLEDBACK; SAW(W_COMMIT_FENCED)
  :: else ->
     if
     :: LOST(r) ->
        if :: b.probe == CUR(r) + 1 -> SAW(W_CONFLICTED_PROBE) :: else -> SAW(W_CONFLICTED) fi;
        B_RELEASED(b, CUR(r)); END(r, O_CONFLICTED); FLUSH(r); phase[r] = ROLLEDBACK
     :: else ->
        if
        :: MOVED(r) ->
           B_RELEASED(b, CUR(r)); END(r, O_ROLLEDBACK); FLUSH(r); phase[r] = ROLLEDBACK; SAW(W_BREAKER_MOVED)
        :: else ->
           EFFECT(r); mark[CUR(r)] = FREE; mbase[CUR(r)] = 0; FLUSH(r); phase[r] = COMMITTED; SAW(W_COMMITTED)
        fi
     fi
  fi
}

inline COMMIT_FAILS(r) {       /* a full disk: nothing was written, and the mark says so */
  faults++; mark[CUR(r)] = ENDED + O_ROLLEDBACK; phase[r] = ROLLEDBACK; SAW(W_COMMIT_FAILED)
}

inline COMMIT_IN_DOUBT(r, durable) {    /* the commit raised after it was handed to the disk */
  faults++;
  if
  :: durable -> EFFECT(r); FLUSH(r); SAW(W_DOUBT_DURABLE)
  :: else -> SAW(W_DOUBT_NOT_DURABLE)
  fi;
  mark[CUR(r)] = ENDED + O_INTERRUPTED;  /* what to write if it was not */
  phase[r] = DOUBT
}

inline FINISH(r) {             /* the caller is told */
  if
  :: phase[r] == COMMITTED -> acked[CUR(r)] = base[r] + 1;
#ifdef M_SPLIT_OUTCOME
     if :: key[r] -> CLEAR(r); ROW(CUR(r), O_COMMITTED) :: else fi;
#endif
     skip
  :: else
  fi;
  FORGET(r); phase[r] = IDLE
}

/* --- death and recovery ------------------------------------------------------------------------------------------- */

inline DIE(r) {                /* the process ends; its marks stay in a file that nobody locks any more */
  i = r * NA;
  do :: i < (r + 1) * NA -> if :: mark[i] != FREE -> orphan[i] = 1 :: else fi; i++ :: else -> break od;
  FORGET(r); key[r] = 0; phase[r] = DOWN
}
inline FENCE(r) {              /* one transaction of an operator: r can commit nothing more, and its probe is given back */
  fences++; key[r] = 0; fenced[r] = 1;
  if
  :: b.probe != 0 && (b.probe - 1) / NA == r -> B_RELEASED(b, b.probe - 1); SAW(W_FENCED_PROBE)
  :: else
  fi
}
inline REOPEN(r) { key[r] = 1; fenced[r] = 0; phase[r] = OPENING }     /* one transaction: a new owner, with a new key */

inline SETTLE(r, q) {          /* one transaction of r, for what q's dead process left: each attempt gets its one outcome */
  if
  :: FENCED(r) && phase[r] == ASKING -> mark[CUR(r)] = ENDED + O_ROLLEDBACK; FORGET(r); phase[r] = IDLE; SAW(W_SETTLE_FENCED)
  :: FENCED(r) && phase[r] == OPENING -> phase[r] = DOWN
  :: else -> SETTLE_MARKS(r, q)
  fi
}
inline SETTLE_MARKS(r, q) {
  i = q * NA;
  do
  :: i < (q + 1) * NA ->
     if
     :: mark[i] != FREE && orphan[i] ->
#ifndef M_NO_RECOVERY
        if
#ifdef M_SECOND_OUTCOME
        :: true ->
#else
        :: out[i] != NONE -> SAW(W_SETTLED_HAD_ROW)
        :: else ->
#endif
           if
           :: mark[i] == RUNNING -> BLAME(i); ROW(i, O_INTERRUPTED); SAW(W_SETTLED_RUNNING)
#ifdef M_BLAME_WAITING
           :: mark[i] == WAITING -> BLAME(i); ROW(i, O_INTERRUPTED)
#else
           :: mark[i] == WAITING -> ROW(i, O_INTERRUPTED); SAW(W_SETTLED_WAITING)
#endif
           :: else -> ROW(i, mark[i] - ENDED); SAW(W_SETTLED_ENDED)
           fi;
           B_RELEASED(b, i)
        fi;
#endif
        mark[i] = FREE; mbase[i] = 0; orphan[i] = 0
     :: else
     fi;
     i++
  :: else -> break
  od;
  FLUSH(r)
}

inline CUT(keep) {             /* the power fails: every process dies, and the marks may or may not have reached the disk */
  cuts++;
#ifdef M_NO_SYNC
  if
  :: unsynced != 0 ->
     author[head] = 0; head--; cx = head; cP = head; out[unsynced - 1] = NONE; rows[unsynced - 1] = 0;
     abase[unsynced - 1] = 0; lost[unsynced - 1] = 1; unsynced = 0
  :: else
  fi;
#endif
  j = 0;
  do :: j < NR -> DIE(j); j++ :: else -> break od;
  i = 0;
  do
  :: i < A && !keep ->
     if :: begun[i] && out[i] == NONE -> lost[i] = 1 :: else fi;
     mark[i] = FREE; mbase[i] = 0; orphan[i] = 0; i++
  :: else -> break
  od
}

inline LEFT_BY(q) {            /* n: how many marks a dead process of q left */
  n = 0; i = q * NA;
  do :: i < (q + 1) * NA -> n = n + orphan[i]; i++ :: else -> break od
}

/* What user code, the caller and the operating system may do next.  OTHER is the process that is not r, for two. */
#define LEFT(q)     (orphan[(q) * NA] || orphan[(q) * NA + NA - 1])
#ifdef FOLLOW                  /* each attempt has a process of its own, which settles what it left itself */
#define SETTLES(r, q) (phase[r] == OPENING && LEFT(r))
#else
#define SETTLES(r, q) ((phase[r] == OPENING || (phase[r] == ASKING && b.probe != 0 && (b.probe - 1) / NA != r)) && LEFT(q))
#endif
#ifdef EMIT                    /* where the library does at once, or in an order, what the model may do apart */
#define IN_ORDER (!LEFT(0))
#define ALL_SETTLED (!LEFT(0) && !LEFT(NR - 1))
#define NOBODY_ASKS (phase[0] != ASKING && phase[NR - 1] != ASKING)
#else
#define IN_ORDER (true)
#define ALL_SETTLED (true)
#define NOBODY_ASKS (true)
#endif
#define ENDED_IN(r) ((mark[r * NA] >= ENDED && !orphan[r * NA]) || (mark[r * NA + NA - 1] >= ENDED && !orphan[r * NA + NA - 1]))

proctype Process(byte r) {
#ifdef FOLLOW
  byte own = r;
#endif
end:
  do
  :: d_step { phase[r] == IDLE && used[r] < (r == NR - 1 -> NB : NA) && MAY("begin", ME) -> PRE; BEGIN(r); POST("begin", ME) }
  :: d_step { phase[r] == ASKING && !SETTLES(r, 0) && !SETTLES(r, NR - 1) && MAY("ask", ME) -> PRE; ASK(r); POST("ask", ME) }
  :: d_step { phase[r] == LEASING && MAY("lease", ME) -> PRE; LEASE(r); POST("lease", ME) }
  :: d_step { FREE_TO_RUN(r) && wP[r] == base[r] && MAY("mutate", ME) -> PRE; MUTATE(r); POST("mutate", ME) }
  :: d_step { invalid < INVALID && FREE_TO_RUN(r) && wP[r] == base[r] && wx[r] != base[r] && MAY("mutate badly", ME) ->
              PRE; MUTATE_BADLY(r); POST("mutate badly", ME) }
  :: d_step { phase[r] == MUTATING && bad[r] != 2 && MAY("validate", ME) -> PRE; VALIDATE(r); POST("validate", ME) }
  :: d_step { phase[r] == VALIDATED && wP[r] != base[r] && MAY("offer", ME) -> PRE; OFFER(r); POST("offer", ME) }
  :: d_step { phase[r] == OFFERED && MAY("commit", ME) -> PRE; COMMIT(r); POST("commit", ME) }
  :: d_step { BUSY(r) && MAY("fail", ME) -> PRE; ROLLBACK(r, true); POST("fail", ME) }
  :: d_step { BUSY(r) && MAY("leave", ME) -> PRE; ROLLBACK(r, false); POST("leave", ME) }
  :: d_step { OVER(r) && MAY("finish", ME) -> PRE; FINISH(r); POST("finish", ME) }
  :: d_step { phase[r] == DOUBT && MAY("give up", ME) -> PRE; FORGET(r); phase[r] = IDLE; POST("give up", ME) }
#ifdef M_TORN
  :: d_step { phase[r] == COMMITTED && cP != head -> cP = wP[r]; CHECK() }
#endif
#ifndef M_NO_FLUSH
  :: d_step { phase[r] == IDLE && key[r] && ENDED_IN(r) && MAY("flush", ME) -> PRE; FLUSH(r); POST("flush", ME) }
#endif
  :: d_step { phase[r] == IDLE && !key[r] && MAY("close", ME) -> PRE; DIE(r); POST("close", ME) }
  :: d_step { phase[r] == DOWN && MAY("reopen", ME) -> PRE; REOPEN(r); POST("reopen", ME) }
#ifdef FOLLOW
  :: d_step { SETTLES(r, r) && MAY("settle", ME) -> PRE; SETTLE(r, own); POST("settle", ME) }
#else
  :: d_step { SETTLES(r, 0) && MAY("settle 0", ME) -> PRE; SETTLE(r, 0); POST("settle 0", ME) }
  :: d_step { SETTLES(r, NR - 1) && IN_ORDER && MAY("settle 1", ME) -> PRE; SETTLE(r, NR - 1); POST("settle 1", ME) }
#endif
  :: d_step { phase[r] == OPENING && !LEFT(0) && !LEFT(NR - 1) && MAY("opened", ME) -> PRE; phase[r] = IDLE; POST("opened", ME) }
  /* what the environment may do to r: bounded, and never obliged to happen */
  :: d_step { crashes < CRASHES && phase[r] != DOWN && MAY("crash", ME) ->
              PRE; c_code { seen[W_CRASH_IN + now.phase[ME]]++; }; crashes++; DIE(r); POST("crash", ME) }
  :: d_step { fences < FENCES && phase[r] != DOWN && key[r] && ALL_SETTLED && MAY("fence", ME) ->
              PRE; FENCE(r); POST("fence", ME) }
  :: d_step { faults < FAULTS && phase[r] == OFFERED && MAY("commit fails", ME) -> PRE; COMMIT_FAILS(r); POST("commit fails", ME) }
  :: d_step { faults < FAULTS && phase[r] == OFFERED && !FENCED(r) && !LOST(r) && !MOVED(r) && MAY("doubt, durable", ME) ->
              PRE; COMMIT_IN_DOUBT(r, true); POST("doubt, durable", ME) }
  :: d_step { faults < FAULTS && phase[r] == OFFERED && !FENCED(r) && MAY("doubt, not durable", ME) ->
              PRE; COMMIT_IN_DOUBT(r, false); POST("doubt, not durable", ME) }
  od
}

proctype World() {
end:
  do
#ifndef M_NO_COOLDOWN
  :: d_step { b.mode == OPEN && !b.cooled && NOBODY_ASKS && MAY("cool", 0) -> PRE; b.cooled = 1; POST("cool", 0) }
#endif
#ifdef M_FORCED_TIMER
  :: d_step { b.mode == FORCED_OPEN && !b.cooled -> b.cooled = 1; CHECK() }
#endif
  :: d_step { meas < MEAS && MAY("measure", 0) ->
              PRE; meas++; head++; author[head] = BY_MEAS; cx = head; cP = head; meas_at = head; POST("measure", 0) }
  :: d_step { forces < FORCES && MAY("force open", 0) -> PRE; forces++; B_FORCED(b, FORCED_OPEN); SAW(W_FORCED); POST("force open", 0) }
  :: d_step { forces < FORCES && MAY("force closed", 0) ->
              PRE; forces++; B_FORCED(b, FORCED_CLOSED); SAW(W_FORCED); POST("force closed", 0) }
#ifdef FOLLOW                  /* an operator may release any breaker */
#define HELD (true)
#else
#define HELD (b.mode == FORCED_OPEN || b.mode == FORCED_CLOSED)
#endif
#ifdef FOLLOW                  /* an owner that has no probe of this user's */
  :: d_step { MAY("fence another", 0) -> PRE; skip; POST("fence another", 0) }
#endif
  :: d_step { HELD && MAY("release", 0) ->
              PRE; B_CLOSED(b); died = 0; SAW(W_RELEASED); POST("release", 0) }
  :: d_step { cuts < CUTS && MAY("power cut, marks kept", 0) -> PRE; CUT(true); SAW(W_CUT_KEPT_MARKS); POST("power cut, marks kept", 0) }
  :: d_step { cuts < CUTS && MAY("power cut, marks lost", 0) -> PRE; CUT(false); SAW(W_CUT_LOST_MARKS); POST("power cut, marks lost", 0) }
  od
}

init {
  byte k;
  atomic {
    c_code { atexit(tell_seen); };
#ifdef FOLLOW
    c_code { follow_load(); };
#endif
    do :: k < NR -> key[k] = 1; run Process(k); k++ :: else -> break od;
    run World(); k = 0
#ifdef FOLLOW
    ; c_code { follow_keys(); }
#endif
  }
#ifdef FOLLOW
  ; d_step { c_expr { now.ti == follow_rows } && !strayed -> c_code { follow_accept(); } }
#endif
}

/* Liveness: on every run, to its end or for ever; none of it needs a fair scheduler. */
#ifdef LTL_ENDS        /* INV-03, INV-12: every attempt ends with an outcome, whatever dies meanwhile */
ltl every_attempt_ends { [] (begun[0] -> <> (out[0] != NONE || lost[0])) }
#endif
#ifdef LTL_ENDS_LAST
ltl the_last_attempt_ends { [] (begun[A - 1] -> <> (out[A - 1] != NONE || lost[A - 1])) }
#endif
#ifdef LTL_PROBE       /* INV-07, INV-12: a probe gives its slot back */
ltl a_probe_is_released { [] (b.probe != 0 -> <> (b.probe == 0)) }
#endif
#ifdef LTL_COOLS       /* INV-12: the cooldown of an open breaker ends */
ltl the_breaker_cools { [] (b.mode == OPEN -> <> (b.mode != OPEN || b.cooled)) }
#endif
#ifdef LTL_ADMITS      /* INV-12: where it has cooled, or its probe is free, and somebody asks, the probe is leased */
#define FREE_PROBE ((b.mode == OPEN && b.cooled) || (b.mode == HALF && b.probe == 0))
ltl the_breaker_admits_again { [] ((FREE_PROBE && (phase[0] == ASKING || phase[NR - 1] == ASKING)) -> <> (b.probe != 0)) }
#endif
#ifdef LTL_SETTLES     /* INV-12: nobody stays stuck: in the end every process is at rest, and no mark waits */
ltl everything_settles { <> [] (phase[0] == IDLE && phase[NR - 1] == IDLE && mark[0] == FREE && mark[A - 1] == FREE) }
#endif
